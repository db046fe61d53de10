"""What a run tells a person while it goes on: a bar on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

# seconds between two plain lines
INTERVAL = 5.0


class Progress(Protocol):
    """Told of every finished image."""

    def start(self, total: int, *, done: int) -> None:
        """The run begins; ``done`` of ``total`` images were finished by an earlier one."""
        ...

    def advance(self, *, failed: bool) -> None:
        """One more image is finished."""
        ...

    def message(self, text: str) -> None:
        """Something worth a line."""
        ...

    def stop(self) -> None:
        """No image follows."""
        ...


class Silent:
    """Says nothing."""

    def start(self, total: int, *, done: int) -> None:
        """Nothing."""

    def advance(self, *, failed: bool) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class Lines:
    """Plain lines every few seconds, for logs; no control characters."""

    def __init__(self) -> None:
        self._total = self._done = self._now = self._failed = 0
        self._began = self._spoke = time.monotonic()

    def start(self, total: int, *, done: int) -> None:
        """Remember where it starts."""
        self._total, self._done, self._now = total, done, 0
        self._began = self._spoke = time.monotonic()

    def advance(self, *, failed: bool) -> None:
        """Count, and speak when it is time."""
        self._now += 1
        self._failed += failed
        now = time.monotonic()
        if now - self._spoke < INTERVAL:
            return
        self._spoke = now
        rate = self._now / (now - self._began)
        left = (self._total - self._done - self._now) / rate
        self.message(
            f"{self._done + self._now}/{self._total} images, {self._failed} failed, "
            f"{rate:.1f} images/s, {_duration(left)} left"
        )

    def message(self, text: str) -> None:
        """One line on stderr."""
        print(f"wsss-rt: {text}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Nothing to clean up."""


class Bar:
    """A live bar of rich, for terminals."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._failed = 0

    def start(self, total: int, *, done: int) -> None:
        """Draw it."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("labelling"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failures]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("label", total=total, completed=done, failures="")
        self._bar.start()

    def advance(self, *, failed: bool) -> None:
        """Move it."""
        self._failed += failed
        failures = f"{self._failed} failed" if self._failed else ""
        self._bar.update(self._task, advance=1, failures=failures)

    def message(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is None:
            print(f"wsss-rt: {text}", file=sys.stderr, flush=True)
        else:
            self._bar.console.print(f"wsss-rt: {text}", markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Remove it."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def open_progress(*, quiet: bool) -> Progress:
    """The progress that fits stderr."""
    if quiet:
        return Silent()
    return Bar() if sys.stderr.isatty() else Lines()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
