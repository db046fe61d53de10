"""Overlays: the picture to look at when a mask is in doubt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt.io.atomic import write_atomic
from wsss_rt.io.decode import to_upright
from wsss_rt.report.draw import encode_jpeg, overlay

if TYPE_CHECKING:
    from wsss_rt.classes import ClassSet
    from wsss_rt.results import Result

OVERLAYS = "overlays"


class OverlayWriter:
    """``overlays/<same path>.jpg``: image, tinted regions with outlines, legend below; upright.

    Args:
        out: output folder.
        classes: names for the legend.
    """

    name = "overlay"
    keys: tuple[str, ...] = ("overlay",)
    needs: frozenset[str] = frozenset({"image"})

    def __init__(self, out: Path, classes: ClassSet) -> None:
        self._out, self._classes = out, classes

    def add(self, result: Result) -> dict[str, str]:
        """Draw one image."""
        if result.mask is None or result.image is None:
            raise ValueError(f"{result.relative} comes without its mask or its pixels")
        picture = overlay(result.image, to_upright(result.mask, result.orientation), self._classes)
        relative = f"{OVERLAYS}/{result.mask_name.removesuffix('.png')}.jpg"
        write_atomic(self._out / relative, encode_jpeg(picture))
        return {"overlay": relative}

    def finish(self, records: Iterable[dict[str, Any]]) -> list[Path]:
        """Nothing is collected."""
        return []
