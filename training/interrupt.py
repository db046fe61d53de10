"""Stopping in an orderly way: a signal asks, the loop answers between two steps."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from wsss_rt.errors import WsssError


class Interrupted(WsssError):
    """Training was stopped by a signal, and its state is saved.

    Args:
        number: the signal; the exit status is 128 plus it, as shells expect.
        folder: the run folder.
        seen, total: images so far, and planned.
    """

    def __init__(self, number: int, folder: Path, seen: int, total: int) -> None:
        self.exit_code = 128 + number
        super().__init__(
            f"stopped after {seen} of {total} images; the state is saved in {folder}",
            fix="the same command continues from there",
            code="interrupted",
        )


class StopSignal:
    """While active, SIGINT and SIGTERM set ``requested``; a second one ends the process at once."""

    def __init__(self) -> None:
        self.requested = False
        self.number = 0
        self._kept: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        # only the main thread may install handlers; elsewhere (notebooks, tests) the caller is in charge
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._kept[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested, self.number = True, number
