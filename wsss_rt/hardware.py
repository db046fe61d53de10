"""Processor, memory and GPUs of this machine, as far as the system and its programs tell."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

# what decides the speed of a matrix product
_FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip


def processor() -> dict[str, Any]:
    """Its ``name``, how many are ``usable`` and ``present``, and the ``features`` that speed up products."""
    from wsss_rt.run_record import machine

    known = machine()
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.partition(":")[2].split())
                break
    return {
        "name": known["processor"],
        "usable": known["processors"],
        "present": os.cpu_count(),
        "features": [name for name in _FEATURES if name in flags],
    }


def memory() -> dict[str, Any]:
    """``total_bytes``; where the system tells them, ``available_bytes`` and a container's ``limit_bytes``."""
    page = os.sysconf("SC_PAGE_SIZE")
    found: dict[str, Any] = {"total_bytes": page * os.sysconf("SC_PHYS_PAGES")}
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable"):
                found["available_bytes"] = int(line.split()[1]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        found["limit_bytes"] = int(text)
    return found


def gpus() -> list[dict[str, str]]:
    """As nvidia-smi tells them: ``name``, ``driver``, ``memory``, ``compute_capability``; none without it.

    Raises:
        RuntimeError: it fails.
        subprocess.TimeoutExpired: it hangs.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = ("name", "driver_version", "memory.total", "compute_cap")
    done = subprocess.run(
        [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"nvidia-smi: {(done.stderr or done.stdout).strip()}")
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(("name", "driver", "memory", "compute_capability"), row, strict=False)) for row in rows]
