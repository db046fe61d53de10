"""How the parts of ``gpu.py`` measure: by CUDA events, and by the allocator's own count."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from wsss_rt.kernels import use_kernels

_GIB = 1 << 30


def median_ms(work: Callable[[], Any], repeat: int) -> float:
    """Median of single runs by CUDA events, after three that do not count."""
    for _ in range(3):
        work()
    times = []
    for _ in range(repeat):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def peak_gib(work: Callable[[], Any]) -> float:
    """Memory that a run takes beyond what is there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / _GIB


def measured(work: Callable[[], Any], repeat: int) -> Any:
    """Time and memory, or why there are none: one way that fails must not cost the others their rows."""
    try:
        return {"ms": round(median_ms(work, repeat), 4), "peak_gib": round(peak_gib(work), 3)}
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"


def in_both(work: Callable[[], Any], repeat: int) -> dict[str, Any]:
    """An operator by its kernels and, in fewer runs, by its reference."""
    found = {}
    for mode, runs in (("triton", max(3, repeat // 5)), ("reference", 3)):
        with use_kernels(mode):
            found[mode] = measured(work, runs)
    return found


def ceilings(repeat: int) -> dict[str, float]:
    """What this card reaches: TFLOP/s of bf16, TF32 and float32 products, GB/s of a copy."""
    side, found = 8192, {}
    left, right = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found["tflops"] = round(2 * side**3 / median_ms(lambda: left @ right, repeat) / 1e9, 1)
    side = 4096
    wide = torch.randn(side, side, device="cuda")
    found["tflops_float32"] = round(2 * side**3 / median_ms(lambda: wide @ wide, repeat) / 1e9, 1)
    source = torch.empty(1 << 28, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    found["gbs"] = round(2 * source.numel() * 4 / median_ms(lambda: target.copy_(source), repeat) / 1e6, 1)
    return found


def with_rates(row: Any, ceiling: dict[str, float], *, flops: float = 0, moved: float = 0) -> Any:
    """Adds TFLOP/s and GB/s of a measured way, and their shares of what the card reaches."""
    if isinstance(row, dict):
        for name, amount, unit in (("tflops", flops, 1e9), ("gbs", moved, 1e6)):
            if amount:
                row[name] = round(amount / row["ms"] / unit, 1)
                if ceiling.get(name):
                    row[f"{name}_share"] = round(row[name] / ceiling[name], 3)
    return row


def ceiling_rows(repeat: int, _: dict[str, float]) -> Iterator[tuple[str, Any]]:
    """The card's name, and :func:`ceilings`, as a part of ``gpu.py``."""
    yield "device", torch.cuda.get_device_name()
    yield "ceilings", ceilings(repeat)
