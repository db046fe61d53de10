"""Runs pieces of one image's work in a few threads.

Not numba's own threads: those of its default layer end the process when two images use them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any


class Crew:
    """A fixed number of threads, of which the caller's is one; a context manager.

    Args:
        threads: at least 1; with 1, everything runs in the caller's thread.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "wsss-rt-crew") if threads > 1 else None

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def run(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Results of ``function(*call)`` in the order of ``calls``; returns when all are done.

        Raises:
            Exception: what the first failing call raised.
        """
        if self._pool is None:
            return [function(*call) for call in calls]
        waiting = list(enumerate(calls))
        results: list[Any] = [None] * len(waiting)
        # pop is atomic; the last call is taken first, so they are turned round
        waiting.reverse()

        def work() -> None:
            while waiting:
                try:
                    index, call = waiting.pop()
                except IndexError:
                    return
                results[index] = function(*call)

        others = [self._pool.submit(work) for _ in range(min(self.threads, len(waiting)) - 1)]
        try:
            work()
        finally:
            # an error here must not leave threads that write into arrays of the caller
            waiting.clear()
            failures = [other.exception() for other in others]
        for failure in failures:
            if failure is not None:
                raise failure
        return results
