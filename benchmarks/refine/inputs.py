"""What the CRF's benchmarks refine: photographs or scenes, with noisy probabilities made from their masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

IGNORE = 255
PHOTOGRAPHS = Path("../shared/data/voc_animals")
Sample = tuple[str, NDArray[np.uint8], NDArray[np.uint8]]


def photographs(data: Path, count: int, *, fine: bool = False) -> Iterator[Sample]:
    """Name, image and mask of the first photographs that show one to three classes.

    Args:
        data: VOC tree.
        count: how many.
        fine: of the official val list alone, whose masks are fine and whose images have their own size.
    """
    listed = data / "ImageSets" / "Segmentation" / "val.txt"
    names = listed.read_text().split()
    if not fine:
        names = sorted(path.stem for path in (data / "SegmentationClass").glob("*.png"))
    found = 0
    for name in names:
        with Image.open(data / "SegmentationClass" / f"{name}.png") as opened:
            mask = np.asarray(opened)
        if not 1 <= len(present(mask)) - 1 <= 3:
            continue
        with Image.open(data / "JPEGImages" / f"{name}.jpg") as opened:
            image = np.asarray(opened.convert("RGB"))
        yield name, image, mask
        found += 1
        if found == count:
            return


def scenes(count: int, *, height: int = 375, width: int = 500) -> Iterator[Sample]:
    """The same from generated scenes."""
    from wsss_rt.scenes import render_scene

    for index in range(count):
        scene = render_scene(90_001, index, height=height, width=width)
        yield f"scene {index}", scene.image, scene.mask


def present(mask: NDArray[np.uint8]) -> NDArray[Any]:
    """Values of a mask, background first, without 255."""
    return np.union1d((0,), np.setdiff1d(np.unique(mask), (IGNORE,)))


def noisy(mask: NDArray[np.uint8], seed: int, *, token: int = 16, noise: float = 0.25) -> NDArray[np.float32]:
    """(C, H, W) float32 probabilities of the present values: their shares on tokens, with noise, drawn up.

    Args:
        mask: (H, W), 255 counts as none of the values.
        seed: of the noise.
        token: side of a token, pixels.
        noise: standard deviation of what is added to the shares.
    """
    rng = np.random.default_rng(seed)
    height, width = mask.shape
    grid = (-(-width // token), -(-height // token))
    planes = []
    for value in present(mask):
        share = cv2.resize((mask == value).astype(np.float32), grid, interpolation=cv2.INTER_AREA)
        share += rng.normal(0, noise, share.shape).astype(np.float32)
        planes.append(cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR))
    stacked = np.clip(np.stack(planes), 0.02, 1)
    return np.asarray(stacked / stacked.sum(axis=0), np.float32)
