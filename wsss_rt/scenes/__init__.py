"""Synthetic scenes with exact masks: a weakly supervised segmentation benchmark that needs no photographs.

Every object carries its class's pattern on a part of its body only; the rest looks like the emblem's ground
but tells no class (partial activation). Three classes mostly come with a background of their own
(co-occurring context). Bodies without a pattern, or with a neutral one, are background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from wsss_rt.errors import UsageError
from wsss_rt.scenes.noise import U8
from wsss_rt.scenes.render import render_layers

__all__ = ["MIN_SIDE", "Scene", "render_scene", "write_scenes"]

MIN_SIDE, MAX_SIDE = 64, 4096


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        image: (H, W, 3) uint8 RGB, decoded from `jpeg`.
        mask: (H, W) uint8, 0 background, class index + 1 elsewhere (exact, no ignore band).
        tags: sorted 0-based indices into SCENE_CLASSES, exactly the classes in the mask.
        jpeg: the file's bytes.
    """

    image: U8
    mask: U8
    tags: tuple[int, ...]
    jpeg: bytes


def check_size(height: int | None, width: int | None) -> None:
    """Raise UsageError unless both sides are unset or both reach MIN_SIDE."""
    if (height is None) != (width is None):
        raise UsageError(
            "a scene needs both height and width, or neither", fix="give HxW, for example 224x224"
        )
    if (
        height is not None
        and width is not None
        and not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE)
    ):
        raise UsageError(
            f"scenes of {height}x{width} cannot be drawn",
            why=f"each side is {MIN_SIDE} to {MAX_SIDE} pixels",
            fix="give HxW within that range, for example 224x224",
        )


def render_scene(
    seed: int,
    index: int,
    *,
    height: int | None = None,
    width: int | None = None,
    close_up: bool = False,
) -> Scene:
    """Scene number `index` of `seed`: the same bytes in any order, process or number of threads.

    Without height and width the size is random and never square: short side 160..256, aspect up to 1.6.
    A close-up shows one large object and no distractors: what a training run may begin with.
    Raises UsageError for a size outside 64..4096, or a negative seed or index.
    """
    check_size(height, width)
    if seed < 0 or index < 0:
        raise UsageError(f"seed {seed} and index {index} must not be negative")
    layers = render_layers(seed, index, height, width, close_up=close_up)
    image = cv2.imdecode(np.frombuffer(layers.jpeg, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise RuntimeError("OpenCV could not decode the JPEG that it wrote")
    cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return Scene(image, layers.mask, layers.classes, layers.jpeg)


def write_scenes(
    out: str | Path,
    count: int,
    seed: int,
    size: tuple[int, int] | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write scenes 0..count-1 of `seed` as a VOC tree; see :func:`wsss_rt.scenes.write.write_scenes`."""
    from wsss_rt.scenes import write  # Pillow is needed for writing alone

    write.write_scenes(out, count, seed, size, progress=progress)
