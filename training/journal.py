"""What a run says while it goes: the log file, and progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from wsss_rt.errors import WsssError
from wsss_rt.io.atomic import write_atomic

LOG = "log.jsonl"


class Journal:
    """Append-only JSONL log; every line holds ``images``, the number of training images seen so far.

    Args:
        path: the log file.
        seen: images of the state that is continued; lines beyond it are dropped, as they will come again.
    """

    def __init__(self, path: Path, *, seen: int) -> None:
        self.path = path
        kept = [entry for entry in read_log(path) if seen and entry["images"] <= seen]
        write_atomic(path, b"".join(_line(entry) for entry in kept))

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add a line."""
        try:
            with self.path.open("ab") as file:
                file.write(_line(entry))
        except OSError as error:
            raise WsssError(
                f"cannot write {self.path}", why=error.strerror or str(error), code="cannot_write"
            ) from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """Entries of a log, oldest first; a last line that was cut short is left out, a missing file is empty."""
    entries = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "images" in entry:
                entries.append(entry)
    return entries


class Progress:
    """Progress on a terminal as one line that is rewritten, elsewhere as a line now and then.

    Args:
        total: images in the whole run.
        start: images already seen.
        every: seconds between lines.
        stream: where to write.
    """

    def __init__(self, total: int, *, start: int, every: float, stream: TextIO | None = None) -> None:
        self.total, self.every = total, every
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._last = (time.monotonic(), start)
        self._rate = 0.0

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task("starting", total=self.total, completed=self._last[1])
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def due(self) -> bool:
        """Whether it is time for :meth:`report`."""
        return time.monotonic() - self._last[0] >= (min(self.every, 2.0) if self._live else self.every)

    def report(self, seen: int, losses: Mapping[str, float], *, lr: float) -> float:
        """Show where the run is; returns images per second since the last report."""
        now = time.monotonic()
        elapsed, images = now - self._last[0], seen - self._last[1]
        rate = images / elapsed if elapsed > 0 else 0.0
        # the estimate of the time left should not jump with every hiccup
        self._rate = rate if not self._rate else 0.7 * self._rate + 0.3 * rate
        self._last = (now, seen)
        left = (self.total - seen) / self._rate if self._rate else float("inf")
        named = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
        text = f"{named}  lr {lr:.2e}  {rate:.1f} images/s  {duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=seen, description=text)
        else:
            self.say(f"{seen}/{self.total} ({100 * seen / max(self.total, 1):.0f} %)  {text}")
        return rate

    def pause(self, seen: int) -> None:
        """Leave the time since the last report out of the rate, as after a validation."""
        self._last = (time.monotonic(), seen)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """A time as a person says it: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds == float("inf"):
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode()
