"""Kernels for processors with AMX, compiled by numba; none is imported before :func:`refusal` is None.

The linear layers of a transformer are matrix products that libraries run near the processor's rate. Its
attention is not: the library writes every head's matrix, and maps need their mean.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache

from wsss_rt.engines.processor import processor_flags

_FLAGS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "amx_tile", "amx_bf16")
# Linux: the system call arch_prctl, its request for a part of the processor's state, and the tiles' number
_ARCH_PRCTL = 158
_REQUEST_PERMISSION = 0x1023
_TILE_DATA = 18


@cache
def refusal() -> str | None:
    """Why this process cannot use tiles, or None; asks the system for them, which threads to come inherit."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"{platform.system()} on {platform.machine()} gives no tiles"
    lacking = [flag for flag in _FLAGS if flag not in processor_flags()]
    if lacking:
        return f"the processor has no {', '.join(lacking)}"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT keeps kernels from being compiled"
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        # for a processor without tiles the compiler would not refuse but end the process
        if os.environ.get(name):
            return f"{name} names another processor to compile for"
    from llvmlite.binding import get_host_cpu_features

    if not get_host_cpu_features().get("amx-bf16", False):
        return "the compiler does not know this processor's tiles"
    if ctypes.CDLL(None, use_errno=True).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA):
        return f"the system does not lend tiles: {os.strerror(ctypes.get_errno())}"
    return None
