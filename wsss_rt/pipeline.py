"""Three stages on bounded queues: parallel before, one at a time in the middle, parallel after, in order.

Knows nothing about images. ``before`` and ``after`` run in a pool of threads (numpy, OpenCV, Pillow and zlib
release the interpreter lock); ``middle`` runs in one thread, because an engine takes one caller at a time and
already fills the cores. An exception of any stage ends the iteration after the results that precede it.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Work = TypeVar("Work")
Output = TypeVar("Output")

_END = object()
# how often a blocked thread looks whether the reader has gone away
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Stages(Generic[Item, Work, Output]):
    """The functions of a pipeline.

    Attributes:
        before: one item to its work; called from several threads.
        middle: changes a batch of work in place; called from one thread.
        after: one work to its output; called from several threads.
    """

    before: Callable[[Item], Work]
    middle: Callable[[Sequence[Work]], None]
    after: Callable[[Work], Output]


def run_stages(
    items: Iterable[Item],
    stages: Stages[Item, Work, Output],
    *,
    workers: int,
    batch: int = 1,
    stop: threading.Event | None = None,
) -> Iterator[Output]:
    """Outputs in the order of ``items``, of which at most about ``2 * (workers + batch)`` are in memory.

    Args:
        items: taken lazily, from one thread.
        stages: see :class:`Stages`.
        workers: threads of the pool.
        batch: consecutive items that ``middle`` gets together.
        stop: once set, no further item is taken, and those in flight are finished.

    Raises:
        Exception: whatever a stage raised.
    """
    ahead = workers + batch
    outputs: queue.Queue[Future[Output] | BaseException | object] = queue.Queue(maxsize=ahead)
    abandoned = threading.Event()

    def deliver(entry: Future[Output] | BaseException | object) -> None:
        while not abandoned.is_set():
            try:
                outputs.put(entry, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue

    def drive(pool: ThreadPoolExecutor) -> None:
        try:
            source = iter(items)
            pending: deque[Future[Work]] = deque()
            exhausted = False
            broken: BaseException | None = None
            while not abandoned.is_set():
                while not exhausted and len(pending) < ahead:
                    if stop is not None and stop.is_set():
                        exhausted = True
                        break
                    try:
                        pending.append(pool.submit(stages.before, next(source)))
                    except StopIteration:
                        exhausted = True
                    except BaseException as error:
                        # raised when the items that precede it are finished
                        broken, exhausted = error, True
                if not pending:
                    break
                group: list[Work] = []
                failure: BaseException | None = None
                while pending and len(group) < batch and failure is None:
                    try:
                        group.append(pending.popleft().result())
                    except BaseException as error:
                        # the work that precedes the failure is finished before it is reported
                        failure = error
                if group:
                    stages.middle(group)
                for work in group:
                    deliver(pool.submit(stages.after, work))
                if failure is not None:
                    raise failure
            if broken is not None:
                raise broken
            deliver(_END)
        except BaseException as error:
            # raised again where the outputs are read
            deliver(error)

    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="wsss-rt")
    driver = threading.Thread(target=drive, args=(pool,), name="wsss-rt-engine", daemon=True)
    driver.start()
    try:
        while (entry := outputs.get()) is not _END:
            if isinstance(entry, BaseException):
                raise entry
            assert isinstance(entry, Future)
            yield entry.result()
    finally:
        abandoned.set()
        pool.shutdown(wait=False, cancel_futures=True)
        driver.join()
        pool.shutdown(wait=True)
