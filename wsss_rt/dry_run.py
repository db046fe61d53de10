"""`--dry-run`: what a labelling run would do, from the headers of the images; writes nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsss_rt.errors import ImageError
from wsss_rt.headers import header_size
from wsss_rt.label_plan import Plan
from wsss_rt.localize import pass_sizes

# longest side of the upper edge of each bucket
BUCKETS = (256, 512, 1024, 2048, 4096)
# measured on masks of photographs and scenes: an indexed PNG of a few regions
MASK_BYTES_PER_PIXEL = 0.03
COCO_BYTES_PER_IMAGE = 1_500
REPORT_BYTES_PER_IMAGE = 40_000
OVERLAY_BYTES_PER_PIXEL = 0.35
MAPS_BYTES_PER_IMAGE = 400_000


@dataclass
class Forecast:
    """What would happen.

    Attributes:
        images: how many were found.
        readable: how many have a header that can be read and a size within the limit.
        problems: those that would fail, by class of error; damage past the header shows only on decoding.
        untagged: how many have no tags.
        buckets: images by longest side, pixels.
        tokens: sum of the tokens of all passes, which is what the time grows with.
        disk_bytes: estimate of what would be written.
        free_bytes: free where it would be written.
    """

    images: int = 0
    readable: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    untagged: int = 0
    buckets: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    disk_bytes: int = 0
    free_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "images": self.images,
            "readable": self.readable,
            "problems": dict(sorted(self.problems.items())),
            "untagged": self.untagged,
            "longest_side": dict(self.buckets),
            "tokens": self.tokens,
            "disk_bytes_estimate": self.disk_bytes,
            "disk_bytes_free": self.free_bytes,
        }

    def lines(self) -> list[str]:
        """For people."""
        text = [f"{self.images} images, {self.readable} with a readable header"]
        text += [f"  {count} would fail: {code}" for code, count in sorted(self.problems.items())]
        if self.untagged:
            text.append(f"  {self.untagged} have no tags and would be reported")
        text += [f"  {self.buckets[name]:>8} {name}" for name in _bucket_names() if name in self.buckets]
        text.append(
            f"about {self.disk_bytes / 1e6:.1f} MB would be written, {self.free_bytes / 1e6:.0f} MB are free"
        )
        return text


def forecast(plan: Plan, *, formats: Iterable[str], out: Path) -> Forecast:
    """Read the header of every image of a plan.

    Args:
        plan: what would be labelled.
        formats: names of the writers that would run.
        out: where; it need not exist.
    """
    result = Forecast(images=len(plan.sources), untagged=plan.untagged)
    names = {str(name) for name in formats}
    patch = plan.card.input.patch
    passes = 2 if plan.options.flip else 1
    for source in plan.sources:
        try:
            width, height = header_size(source.path, max_pixels=plan.options.max_pixels)
        except ImageError as error:
            result.problems[error.code] += 1
            continue
        result.readable += 1
        result.buckets[_bucket(max(width, height))] += 1
        sizes, _ = pass_sizes((width, height), plan.card.input, scales=plan.options.scales or (1.0,))
        result.tokens += passes * sum((w // patch) * (h // patch) for w, h in sizes)
        result.disk_bytes += _disk_bytes(width * height, names)
    folder = Path(os.path.abspath(out))
    while not folder.is_dir():
        folder = folder.parent
    status = os.statvfs(folder)
    result.free_bytes = status.f_bavail * status.f_frsize
    return result


def _disk_bytes(pixels: int, formats: set[str]) -> int:
    total = 1_000 + pixels * MASK_BYTES_PER_PIXEL
    total += COCO_BYTES_PER_IMAGE * ("coco" in formats)
    total += REPORT_BYTES_PER_IMAGE * ("report" in formats)
    total += OVERLAY_BYTES_PER_PIXEL * pixels * ("overlay" in formats)
    total += MAPS_BYTES_PER_IMAGE * ("npz" in formats)
    return round(total)


def _bucket(side: int) -> str:
    for edge, name in zip(BUCKETS, _bucket_names(), strict=False):
        if side <= edge:
            return name
    return _bucket_names()[-1]


def _bucket_names() -> list[str]:
    return [f"up to {edge} px" for edge in BUCKETS] + [f"over {BUCKETS[-1]} px"]
