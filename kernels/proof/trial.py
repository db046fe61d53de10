"""A short trial of a kernel against its reference: single calls in turns, medians of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from wsss_rt.kernels import use_kernels

MODES = ("triton", "reference")
ROUNDS = 25
LEAST_ROUNDS = 3
SECONDS = 2.0
# those in which a kernel is compiled and memory is found
_WARM = 3

#: Milliseconds that a call takes.
Clock = Callable[[Callable[[], Any]], float]


def trial(work: Callable[[], Any], clock: Clock) -> dict[str, float]:
    """Median milliseconds of a call by ``triton`` and by ``reference``, taken in turns within seconds.

    Args:
        work: the call, which runs what ``use_kernels`` says.
        clock: times one.
    """
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for mode in MODES:
        with use_kernels(mode):
            for _ in range(_WARM):
                clock(work)
    until = time.monotonic() + SECONDS
    for turn in range(ROUNDS):
        # neither always runs in what the other left in the caches
        for mode in MODES if turn % 2 else reversed(MODES):
            with use_kernels(mode):
                times[mode].append(clock(work))
        if turn + 1 >= LEAST_ROUNDS and time.monotonic() > until:
            break
    return {mode: statistics.median(taken) for mode, taken in times.items()}


def event_clock(work: Callable[[], Any]) -> float:
    """By CUDA events on the current stream, launches included; waits for the end."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))
