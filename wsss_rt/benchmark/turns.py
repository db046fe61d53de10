"""Measuring several things in turns, so that a neighbour's burst of load falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from wsss_rt.timing import Samples

# slices that the time of each task is cut into
ROUNDS = 5
# fewer calls than this give no percentiles that mean anything
LEAST_CALLS = 5


class Task:
    """Something that is repeated and timed.

    Args:
        step: one repetition; its wall time is one sample.
        images: that one repetition handles.

    Attributes:
        samples: milliseconds of every repetition, none left out.
        seconds: all of them together.
    """

    def __init__(self, step: Callable[[], Any], *, images: int) -> None:
        self._step, self._images = step, images
        self.samples = Samples()
        self.seconds = 0.0

    def run(self) -> None:
        """Repeat once."""
        started = time.perf_counter()
        self._step()
        elapsed = time.perf_counter() - started
        self.samples.add(1e3 * elapsed)
        self.seconds += elapsed

    @property
    def images_per_second(self) -> float:
        """Over all repetitions."""
        return self.samples.count * self._images / self.seconds


def run_in_turns(tasks: Sequence[Task], seconds: float, *, least: int = LEAST_CALLS) -> None:
    """Repeat every task for its time, a slice of each after the other.

    Args:
        tasks: warm already.
        seconds: for each task; a slice ends with the repetition that fills it.
        least: repetitions of each task, also where they take longer than its time.
    """
    for index in range(ROUNDS):
        until = seconds * (index + 1) / ROUNDS
        for task in tasks:
            while task.seconds < until or task.samples.count < least * (index + 1) // ROUNDS:
                task.run()
