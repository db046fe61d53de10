"""What the collective files need of the manifest's records, and no more: all of it is held at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image that has a mask.

    Attributes:
        relative: its name in the run.
        mask: path of the mask below the output folder.
        size: (width, height) of the image file's raster.
        confidence: 0..1, None where unknown.
    """

    relative: str
    mask: str
    size: tuple[int, int]
    confidence: float | None


def is_labelled(record: Mapping[str, Any]) -> bool:
    """Whether a record stands for a mask on the disk."""
    return record.get("status") == "ok" and isinstance(record.get("mask"), str)


def name_of(record: Mapping[str, Any]) -> str:
    """The image's name in the run."""
    return str(record["path"])


def labelled(records: Iterable[Mapping[str, Any]]) -> list[Labelled]:
    """Images with masks, sorted by name, about 300 bytes each; whatever order the records come in."""
    found = []
    for record in records:
        if is_labelled(record):
            width, height = record["size"]
            found.append(
                Labelled(name_of(record), record["mask"], (int(width), int(height)), record.get("confidence"))
            )
    found.sort(key=lambda entry: entry.relative)
    return found
