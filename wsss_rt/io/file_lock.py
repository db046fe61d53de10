"""Waiting for the lock of a file, which frees itself when the process that holds it dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable

_POLL_SECONDS = 0.1


def wait_for_lock(
    descriptor: int,
    seconds: float,
    waiting: Callable[[], None],
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Take the lock of an open file.

    Args:
        descriptor: of the file; closing it frees the lock.
        seconds: how long to wait for another process.
        waiting: called once, before a wait.
        stop: asked while it waits; True ends that.

    Returns:
        Whether it is held.

    Raises:
        OSError: the file system has no locks.
    """
    until: float | None = None
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if until is None:
                until = time.monotonic() + seconds
                waiting()
            if stop() or time.monotonic() >= until:
                return False
            time.sleep(_POLL_SECONDS)
