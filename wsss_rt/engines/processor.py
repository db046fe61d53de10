"""This machine's processor: its name, and the instruction sets that compiled code may ask for."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

# instruction sets as torch names them in compiled packages, and the flags by which the kernel tells of them
_FLAGS = {
    "AVX2": ("avx2", "fma"),
    "AVX512": ("avx512f", "avx512dq", "avx512vl", "avx512bw", "fma"),
    "AVX512_VNNI": ("avx512_vnni",),
    "AMX_TILE": ("amx_tile", "amx_int8", "amx_bf16"),
    "NEON": ("asimd",),
    "ASIMD": ("asimd",),
    "SVE": ("sve",),
    "SVE256": ("sve",),
}


@cache
def processor_name() -> str:
    """Architecture and model, e.g. ``x86_64 Intel(R) Xeon(R) Processor``."""
    for line in _lines():
        if line.startswith(("model name", "Model")):
            return f"{platform.machine()} {line.split(':', 1)[1].strip()}"
    return f"{platform.machine()} {platform.processor()}".strip()


@cache
def processor_flags() -> frozenset[str]:
    """What the kernel says the processor has, e.g. ``avx2``; empty where it does not say."""
    for line in _lines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


@cache
def gpu_names() -> tuple[str, ...]:
    """Of NVIDIA's GPUs, as the driver tells them without any library, e.g. ``NVIDIA H200``."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return tuple(names)


def lacking_instructions(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the instruction sets, in torch's names, that this processor has not; unknown names among them.

    Where the kernel does not tell flags at all, nothing is known to be lacking.
    """
    flags = processor_flags()
    if not flags:
        return ()
    return tuple(name for name in wanted if not flags.issuperset(_FLAGS.get(name, (name.lower(),))))


def _lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        # no /proc: the platform's own word has to do
        return []
