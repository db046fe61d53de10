"""One pass over a run's records: the counts that the report shows, and the images that it shows."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_rt.classes import IGNORE, WIDE_IGNORE, ignore_value
from wsss_rt.formats.png import read_mask
from wsss_rt.formats.records import is_labelled, name_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

# the least confident, for review; and a random sample, for how the run is as a whole
GALLERY = 600
SAMPLE = 60
FAILURES = 500
BINS = 20


@dataclass(frozen=True, slots=True)
class Card:
    """An image that the report shows.

    Attributes:
        name: its relative path.
        rank: what the gallery is sorted by: confidence, -1 where unknown, so that those come first.
        confidence: 0..1 or None.
        shares: (mask value, share of the image's pixels), largest first, without background.
        scores: probability of each class that was looked for.
        flags: what to look at.
        notes: what was done to the image on its way in.
        tags: classes that were looked for.
        files: paths of ``mask``, ``thumbnail`` and, where written, ``overlay``, below the output folder.
    """

    name: str
    rank: float
    confidence: float | None
    shares: tuple[tuple[int, float], ...]
    scores: Mapping[str, float]
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    tags: tuple[str, ...]
    files: Mapping[str, str]


@dataclass
class Collected:
    """Everything that the page is made from; its size does not grow with the number of images.

    Attributes:
        labelled, failed, flagged: images.
        failures: (path, code, message), sorted, the first 500.
        failure_codes: images per class of error.
        flags: images per flag.
        notes: images per note.
        tag_sources: images per ``given`` or ``predicted``.
        tagged: images per class name among the tags.
        score_sums: per class name, over the images that it tags.
        drawn: images per mask value.
        pixels: (256,) int64 pixels per mask value, (65536,) for wide masks.
        histogram: (20,) images per confidence.
        confidence_sum: over the images that have one.
        worst: least confident first.
        sample: a random choice that depends on the names alone.
    """

    labelled: int = 0
    failed: int = 0
    flagged: int = 0
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    failure_codes: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    tag_sources: Counter[str] = field(default_factory=Counter)
    tagged: Counter[str] = field(default_factory=Counter)
    score_sums: dict[str, float] = field(default_factory=dict)
    drawn: Counter[int] = field(default_factory=Counter)
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    confidences: int = 0
    confidence_sum: float = 0.0
    worst: list[Card] = field(default_factory=list)
    sample: list[Card] = field(default_factory=list)


def collect(records: Iterable[Mapping[str, Any]], out: Path, *, wide: bool = False) -> Collected:
    """Read the records once, and every mask once.

    Args:
        records: the manifest's, in any order; the result does not depend on it.
        out: the output folder.
        wide: its masks have 16 bits.

    Raises:
        WsssError: a mask that a record names cannot be read.
    """
    found = Collected(pixels=np.zeros((WIDE_IGNORE if wide else IGNORE) + 1, np.int64))
    worst: list[tuple[_Last, Card]] = []
    sample: list[tuple[_Last, Card]] = []
    failures: list[tuple[_Last, tuple[str, str, str]]] = []
    scores: dict[str, list[int]] = {}
    confidence_sum = 0
    for record in records:
        name = name_of(record)
        if not is_labelled(record):
            found.failed += 1
            code, message = _failure(record)
            found.failure_codes[code] += 1
            _keep(failures, (name,), (name, code, message), limit=FAILURES)
            continue
        card = _card(record, name, out, found)
        for tag in card.tags:
            # whole millionths, so that the sum does not depend on the order of the records
            scores.setdefault(tag, [0])[0] += round(card.scores.get(tag, 0.0) * 1e6)
        if card.confidence is not None:
            found.confidences += 1
            confidence_sum += round(card.confidence * 1e6)
            found.histogram[min(BINS - 1, max(0, int(card.confidence * BINS)))] += 1
        _keep(worst, (card.rank, name), card, limit=GALLERY)
        _keep(sample, (hashlib.sha256(os.fsencode(name)).hexdigest(), name), card, limit=SAMPLE)
    found.score_sums = {tag: total[0] / 1e6 for tag, total in scores.items()}
    found.confidence_sum = confidence_sum / 1e6
    found.worst, found.sample = _ascending(worst), _ascending(sample)
    found.failures = _ascending(failures)
    return found


def _card(record: Mapping[str, Any], name: str, out: Path, found: Collected) -> Card:
    mask = read_mask(out / record["mask"], wide=len(found.pixels) > IGNORE + 1)
    counts = np.bincount(mask.ravel(), minlength=len(found.pixels))
    present = [int(value) for value in np.flatnonzero(counts) if value != 0]
    flags = tuple(record.get("flags") or ())
    found.labelled += 1
    found.flagged += bool(flags)
    found.flags.update(flags)
    notes = tuple(record.get("notes") or ())
    found.notes.update(notes)
    found.tag_sources[str(record.get("tag_source", "none"))] += 1
    tags = tuple(record.get("tags") or ())
    found.tagged.update(tags)
    found.drawn.update(value for value in present if value != ignore_value(mask))
    found.pixels += counts
    total = int(counts.sum())
    shares = sorted(
        ((value, counts[value] / total) for value in present), key=lambda pair: (-pair[1], pair[0])
    )
    confidence = record.get("confidence")
    all_scores = record.get("scores") or {}
    return Card(
        name=name,
        rank=-1.0 if confidence is None else float(confidence),
        confidence=None if confidence is None else float(confidence),
        shares=tuple((value, float(share)) for value, share in shares),
        scores={tag: float(all_scores[tag]) for tag in tags if all_scores.get(tag) is not None},
        flags=flags,
        notes=notes,
        tags=tags,
        files={key: record[key] for key in ("mask", "thumbnail", "overlay") if record.get(key)},
    )


def _failure(record: Mapping[str, Any]) -> tuple[str, str]:
    error = record.get("error") or {}
    return str(error.get("code", "failed")), str(error.get("message", ""))


class _Last:
    """A key in reverse order: heapq keeps the smallest on top, and the largest is what has to go."""

    __slots__ = ("key",)

    def __init__(self, key: tuple[Any, ...]) -> None:
        self.key = key

    def __lt__(self, other: _Last) -> bool:
        return bool(other.key < self.key)


def _keep(heap: list[tuple[_Last, Any]], key: tuple[Any, ...], value: Any, *, limit: int) -> None:
    """Keep ``value`` if its key is among the ``limit`` smallest so far; keys are unique."""
    if len(heap) < limit:
        heapq.heappush(heap, (_Last(key), value))
    elif key < heap[0][0].key:
        heapq.heapreplace(heap, (_Last(key), value))


def _ascending(heap: list[tuple[_Last, Any]]) -> list[Any]:
    return [value for _, value in sorted(heap, key=lambda entry: entry[0].key)]
