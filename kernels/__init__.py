"""Operators that keep attention out of memory: each a PyTorch reference, a Triton kernel, and a dispatcher.

``WSSS_RT_KERNELS`` chooses: ``auto`` (the default: on a GPU the kernels that were proven on this very one,
``wsss_rt.kernels.proof``; else the reference), ``triton`` (an error where it cannot run) or ``reference``.
:func:`ensure_proof` checks what was not yet checked on a device, :func:`standing` says what runs there, and
why. Triton is not imported before a kernel is to run, or to be proven.
"""

from __future__ import annotations

from wsss_rt.kernels._dispatch import (
    KernelUnavailableError,
    kernel_mode,
    last_path,
    tracing_onnx,
    use_kernels,
)
from wsss_rt.kernels.proof import Standing, ensure_proof, standing

__all__ = [
    "KernelUnavailableError",
    "Standing",
    "ensure_proof",
    "kernel_mode",
    "last_path",
    "standing",
    "tracing_onnx",
    "use_kernels",
]
