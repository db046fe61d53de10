"""Wall time of the stages: a stopwatch per image and the percentiles of a run."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PERCENTILES = (50, 90, 95, 99)
# past this many samples every second one is dropped, so that a run's memory does not grow with its length
MAX_SAMPLES = 65_536


class Stopwatch:
    """Milliseconds that one image spent in each stage."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to stage ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, (time.perf_counter() - start) * 1e3)

    def add(self, name: str, milliseconds: float) -> None:
        """Add time that was measured elsewhere."""
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + milliseconds


class Samples:
    """Latencies of one stage in bounded memory.

    Count and mean are exact; percentiles are exact up to ``MAX_SAMPLES`` samples and after that taken over
    an even subsample. Nothing is trimmed.
    """

    def __init__(self) -> None:
        self._values = array("d")
        self._stride = 1
        self.count = 0
        self.total = 0.0

    def add(self, value: float) -> None:
        """Add one latency, milliseconds."""
        if self.count % self._stride == 0:
            self._values.append(value)
            if len(self._values) >= MAX_SAMPLES:
                self._values = self._values[::2]
                self._stride *= 2
        self.count += 1
        self.total += value

    def percentile(self, percent: float) -> float:
        """The smallest sample that at least ``percent`` per cent of the samples do not exceed."""
        ordered = sorted(self._values)
        rank = -(-len(ordered) * percent // 100)
        return ordered[max(0, int(rank) - 1)]

    def summary(self) -> dict[str, float | int]:
        """count, mean and p50, p90, p95, p99 in milliseconds; empty without a sample."""
        if not self.count:
            return {}
        values = {f"p{percent}": round(self.percentile(percent), 3) for percent in PERCENTILES}
        return {"count": self.count, "mean": round(self.total / self.count, 3), **values}


class StageTimes:
    """Latencies of all stages over a run."""

    def __init__(self) -> None:
        self._stages: dict[str, Samples] = {}

    def add(self, timings: Mapping[str, float]) -> None:
        """Add one image's stopwatch, milliseconds per stage."""
        for name, value in timings.items():
            self._stages.setdefault(name, Samples()).add(value)

    def totals(self) -> dict[str, float]:
        """Milliseconds of all images together, per stage."""
        return {name: samples.total for name, samples in self._stages.items()}

    def summary(self) -> dict[str, dict[str, float | int]]:
        """Per stage, in milliseconds, as :meth:`Samples.summary`."""
        return {name: samples.summary() for name, samples in self._stages.items()}
