"""Normalised maps as npz, so that another threshold can be judged without running the model again."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from wsss_rt.errors import WsssError
from wsss_rt.io.atomic import write_atomic
from wsss_rt.io.decode import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.classes import ClassSet
    from wsss_rt.results import Result

MAPS = "maps"
# photographs of VOC keep their full resolution; larger ones hold no more detail than the model's tokens
MAX_SIDE = 512


@dataclass(frozen=True)
class StoredMaps:
    """Content of one file.

    Attributes:
        maps: (K, h, w) float16, 0..1, in the raster of the image file, at most 512 pixels a side.
        classes: K 0-based class indices.
        size: (height, width) of the image file.
        scores: (C,) float32 probability of every class.
    """

    maps: NDArray[np.float16]
    classes: tuple[int, ...]
    size: tuple[int, int]
    scores: NDArray[np.float32]

    def at_size(self, height: int, width: int) -> NDArray[np.float32]:
        """(K, height, width) float32, bilinear with half-pixel centres."""
        grown = np.empty((len(self.maps), height, width), np.float32)
        for plane, stored in zip(grown, self.maps, strict=True):
            plane[:] = _resize(stored.astype(np.float32), height, width)
        return grown


class NpzWriter:
    """``maps/<same path>.npz``, readable with ``numpy.load`` and no pickle.

    Args:
        out: output folder.
        classes: the model's classes.
    """

    name = "npz"
    keys: tuple[str, ...] = ("maps",)
    needs: frozenset[str] = frozenset({"maps"})

    def __init__(self, out: Path, classes: ClassSet) -> None:
        self._out, self._classes = out, classes

    def add(self, result: Result) -> dict[str, str]:
        """Write the maps of one image."""
        if result.maps is None or result.mask is None:
            raise ValueError(f"{result.relative} comes without its maps")
        height, width = result.mask.shape
        scale = min(1.0, MAX_SIDE / max(height, width))
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        stored = np.zeros((len(result.tags), rows, columns), np.float16)
        for plane, full in zip(stored, result.maps, strict=True):
            plane[:] = _resize(np.asarray(full, np.float32), rows, columns)
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            maps=stored,
            classes=np.array(
                [self._classes.index(name) for name in result.tags],
                np.int32 if self._classes.wide else np.int16,
            ),
            size=np.array([height, width], np.int32),
            scores=np.array([result.scores.get(name, np.nan) for name in self._classes.names], np.float32),
        )
        relative = f"{MAPS}/{result.mask_name.removesuffix('.png')}.npz"
        write_atomic(self._out / relative, buffer.getvalue())
        return {"maps": relative}

    def finish(self, records: Iterable[dict[str, Any]]) -> list[Path]:
        """Nothing is collected."""
        return []


def read_maps(path: Path) -> StoredMaps:
    """Read a file that :class:`NpzWriter` wrote.

    Raises:
        WsssError: code ``maps_unreadable``.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            maps, classes = archive["maps"], archive["classes"]
            size, scores = archive["size"], archive["scores"]
        if maps.ndim != 3 or len(maps) != len(classes) or size.shape != (2,) or 0 in maps.shape[1:]:
            raise ValueError(f"maps {maps.shape} do not fit {len(classes)} classes")
        return StoredMaps(maps, tuple(classes.tolist()), (int(size[0]), int(size[1])), scores)
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise WsssError(
            f"cannot read the maps {printable(path)}",
            why=str(error),
            fix="write them with `wsss-rt label --format npz`",
            code="maps_unreadable",
        ) from error


def _resize(plane: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    if plane.shape == (height, width):
        return plane
    smaller = height * width < plane.size
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(plane, (width, height), interpolation=method), np.float32)
