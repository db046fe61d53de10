"""How a labelling run ended, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Summary:
    """How a run ended.

    Attributes:
        out: the output folder.
        images: how many there were to label.
        labelled: how many have a mask now, those of earlier runs included.
        resumed: how many had one before this run.
        errors: failed images by class of error.
        files: files that collect the whole run.
        wall_seconds: from the first image to the last.
        stopped: why the run ended before its last image; empty otherwise.
        signal: number of the signal that ended it, or 0.
    """

    out: Path
    images: int
    labelled: int = 0
    resumed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    files: list[Path] = field(default_factory=list)
    wall_seconds: float = 0.0
    stopped: str = ""
    signal: int = 0

    @property
    def failed(self) -> int:
        """Images that an error left without a mask."""
        return self.errors.total()

    @property
    def images_per_second(self) -> float:
        """Images finished by this run over its wall time."""
        done = self.labelled - self.resumed + self.failed
        return done / self.wall_seconds if self.wall_seconds > 0 else 0.0

    @property
    def exit_code(self) -> int:
        """0 all labelled; 3 some failed; 128 + the number of the signal that ended the run."""
        if self.signal:
            return 128 + self.signal
        return 3 if self.failed else 0

    def counts(self) -> dict[str, Any]:
        """Counts that do not depend on how often the run was interrupted."""
        return {
            "images": self.images,
            "labelled": self.labelled,
            "failed": self.failed,
            "errors": dict(sorted(self.errors.items())),
        }

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "out": str(self.out),
            **self.counts(),
            "resumed": self.resumed,
            "files": [str(path) for path in self.files],
            "wall_seconds": round(self.wall_seconds, 3),
            "images_per_second": round(self.images_per_second, 3),
            "stopped": self.stopped,
            "exit_code": self.exit_code,
        }
