"""COCO instances JSON with compressed RLE: lossless regions, readable with pycocotools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_rt import __version__
from wsss_rt.classes import BACKGROUND, ignore_value
from wsss_rt.formats.png import read_mask
from wsss_rt.formats.records import Labelled, labelled
from wsss_rt.io.atomic import atomic_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.classes import ClassSet
    from wsss_rt.results import Result

COCO_FILE = "annotations.coco.json"


@dataclass(frozen=True)
class Region:
    """All pixels of one class in one image.

    Attributes:
        value: mask value, the category id.
        counts: compressed RLE, column by column, ASCII.
        area: pixels.
        box: x, y, width, height in pixels.
    """

    value: int
    counts: str
    area: int
    box: tuple[int, int, int, int]


def regions(mask: NDArray[np.uint8] | NDArray[np.uint16]) -> Iterator[Region]:
    """A region per class of a mask, ascending; background and ignore are none.

    Args:
        mask: (H, W) uint8 or uint16.
    """
    from pycocotools import mask as rle

    for value in np.flatnonzero(np.bincount(mask.ravel())):
        if value in (BACKGROUND, ignore_value(mask)):
            continue
        encoded = rle.encode(np.asfortranarray(mask == value, np.uint8))
        x, y, width, height = (int(side) for side in rle.toBbox(encoded))
        counts = encoded["counts"].decode("ascii")
        yield Region(int(value), counts, int(rle.area(encoded)), (x, y, width, height))


class CocoWriter:
    """``annotations.coco.json``: category ids are the mask values; an annotation per class and image.

    ``width`` and ``height`` are those of the image file's raster, as every COCO reader expects. Ignored
    pixels belong to no annotation.

    Args:
        out: output folder.
        classes: the model's classes.
        context: fields of run.json.
    """

    name = "coco"
    keys: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()

    def __init__(self, out: Path, classes: ClassSet, *, context: Mapping[str, Any]) -> None:
        self._out, self._classes, self._context = out, classes, context

    def add(self, result: Result) -> dict[str, str]:
        """Nothing per image: the masks on the disk are the source."""
        return {}

    def finish(self, records: Iterable[dict[str, Any]]) -> list[Path]:
        """Write the file from the masks, image by image."""
        entries = labelled(records)
        path = self._out / COCO_FILE
        with atomic_file(path) as file:
            file.write(b'{"info":' + _json(self._info()))
            file.write(b',"licenses":[],"categories":' + _json(self._categories()))
            file.write(b',"images":[')
            for image_id, entry in enumerate(entries, start=1):
                file.write(_separator(image_id) + _json(_image(image_id, entry)))
            file.write(b'\n],"annotations":[')
            annotation_id = 0
            for image_id, entry in enumerate(entries, start=1):
                mask = read_mask(self._out / entry.mask, wide=self._classes.wide)
                for region in regions(mask):
                    annotation_id += 1
                    annotation = {
                        "id": annotation_id,
                        "image_id": image_id,
                        "category_id": region.value,
                        "segmentation": {"size": list(mask.shape), "counts": region.counts},
                        "area": region.area,
                        "bbox": list(region.box),
                        "iscrowd": 0,
                    }
                    file.write(_separator(annotation_id) + _json(annotation))
            file.write(b"\n]}\n")
        return [path]

    def _info(self) -> dict[str, Any]:
        model = self._context.get("model") or {}
        return {
            "description": "Pseudo-labels by wsss-rt: regions of classes, not of single objects. "
            "Category ids are the values of the mask PNGs; 0 is background, "
            f"{self._classes.ignore} is ignore.",
            "version": __version__,
            "contributor": f"wsss-rt {__version__}",
            "method": model.get("method"),
            "model_sha256": model.get("weights_sha256"),
            "config_hash": self._context.get("config_hash"),
            "thresholds": self._context.get("thresholds"),
        }

    def _categories(self) -> list[dict[str, Any]]:
        return [
            {"id": value, "name": name, "supercategory": ""}
            for value, name in enumerate(self._classes.names, start=1)
        ]


def _image(image_id: int, entry: Labelled) -> dict[str, Any]:
    width, height = entry.size
    return {
        "id": image_id,
        "file_name": entry.relative,
        "width": width,
        "height": height,
        "mask": entry.mask,
        "confidence": entry.confidence,
    }


def _separator(number: int) -> bytes:
    return b"\n" if number == 1 else b",\n"


def _json(value: Any) -> bytes:
    # ASCII keeps names that are no UTF-8 exact for Python's reader, as lone surrogates; NaN is no JSON
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
