"""SIGINT and SIGTERM as a request to come to an end."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While entered, SIGINT and SIGTERM set an event instead of ending the process; a second one ends it.

    Attributes:
        event: set by the first signal.
        number: which signal it was, or 0.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        # elsewhere Python allows no handler, and the embedding program has its own
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.event.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
        self.event.set()
