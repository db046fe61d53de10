"""Results as the labeler gives them, made from scenes instead of a model."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from wsss_rt.classes import SCENE_CLASSES, ClassSet
from wsss_rt.io.decode import to_stored_raster
from wsss_rt.results import Failure, Result
from wsss_rt.scenes import render_scene


def make_result(
    name: str,
    index: int,
    *,
    orientation: int = 1,
    ignore_rows: int = 0,
    mask: NDArray[np.uint8] | None = None,
    tags: tuple[str, ...] | None = None,
    flags: tuple[str, ...] = (),
    confidence: float | None = None,
    size: tuple[int, int] = (90, 120),
) -> Result:
    """The scene number ``index`` with its true mask, as if a model had found it.

    Args:
        orientation: of the file that the upright scene came from; the mask is turned to that raster.
        size: height and width of the scene.
    """
    scene = render_scene(77, index, height=size[0], width=size[1])
    upright = scene.mask.copy()
    upright[:ignore_rows] = 255
    stored = to_stored_raster(upright, orientation) if mask is None else mask
    found = tuple(SCENE_CLASSES[tag] for tag in scene.tags) if tags is None else tags
    maps = [(stored == SCENE_CLASSES.index(tag) + 1).astype(np.float32) * 0.9 for tag in found]
    return Result(
        relative=name,
        classes=ClassSet(SCENE_CLASSES),
        path=f"/images/{name}",
        mask_name=str(PurePosixPath(name).with_suffix(".png")),
        mask=stored,
        tags=found,
        tag_source="predicted",
        scores={label: 0.875 if label in found else 0.125 for label in SCENE_CLASSES},
        confidence=round(0.2 + 0.6 * (index % 10) / 10, 6) if confidence is None else confidence,
        flags=flags,
        size=(stored.shape[1], stored.shape[0]),
        orientation=orientation,
        image=scene.image,
        maps=np.stack(maps) if maps else np.zeros((0, *stored.shape), np.float32),
    )


def make_failure(name: str, code: str, message: str) -> Result:
    """An image that could not be labelled."""
    classes = ClassSet(SCENE_CLASSES)
    return Result(relative=name, classes=classes, path=f"/images/{name}", error=Failure(code, message))
