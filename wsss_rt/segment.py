"""From a segmenter's class scores to a mask: windows, passes, tags; pure functions on numpy arrays.

The counterpart of ``localize`` for models whose maps already are class scores of every pixel. Windows and
passes are put together as the official SegViT code (mmsegmentation's) does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def windows(size: tuple[int, int], side: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each window over an image, row by row.

    The last window of a row or column is moved back inside the image; an image that is smaller than a window
    has one of its own size.

    Args:
        size: (H, W), pixels.
        side: of the square window, pixels.
        stride: between windows, 1 to ``side``.
    """
    starts = []
    for length in size:
        count = max(length - side + stride - 1, 0) // stride + 1
        starts.append([max(min(index * stride, length - side), 0) for index in range(count)])
    for top in starts[0]:
        for left in starts[1]:
            yield slice(top, min(top + side, size[0])), slice(left, min(left + side, size[1]))


def merge_passes(
    maps: Sequence[NDArray[np.float32]], *, size: tuple[int, int], planes: Sequence[int] | None = None
) -> NDArray[np.float32]:
    """Class scores of an image from those of its passes.

    Several passes (scales, mirror images) meet as officially: the mean over them of the softmax over classes,
    whose argmax is the pixel's class. What is returned has that order and stays in the scores' own units: the
    logarithm of that mean, plus the mean of what softmax divided by. For one pass these are its scores.

    Args:
        maps: per pass (F, K, h, w) float32; row 1, where there is one, belongs to the mirror image.
        size: (H, W) of the result, pixels.
        planes: those to return; None is all. All take part in the softmax.

    Returns:
        (planes, H, W) float32; resized bilinearly, half-pixel centres.
    """
    chosen = list(range(maps[0].shape[1])) if planes is None else list(planes)
    views = [
        _resized(row if index == 0 else row[:, :, ::-1], size)
        for entry in maps
        for index, row in enumerate(entry)
    ]
    if len(views) == 1:
        return views[0][chosen]
    total = np.zeros((len(chosen), *size), np.float32)
    offset = np.zeros(size, np.float32)
    for view in views:
        peak = view.max(axis=0)
        view -= peak
        np.exp(view, out=view)
        mass = view.sum(axis=0)
        offset += peak + np.log(mass)
        view /= mass
        total += view[chosen]
    # a class of probability 0 everywhere has a logarithm all the same
    mean = np.maximum(total / len(views), np.finfo(np.float32).tiny)
    return np.asarray(np.log(mean) + offset / len(views), np.float32)


def split_background(
    scores: NDArray[np.float32], *, has_background: bool
) -> tuple[float | NDArray[np.float32], NDArray[np.float32]]:
    """Background and class planes, as ``localize.decide`` takes them.

    Args:
        scores: (background and classes, H, W), or (classes, H, W) without a background plane.
        has_background: whether plane 0 is the background's; without it no pixel is background, which is a
            score below all others.
    """
    return (scores[0] if has_background else -np.inf), scores[int(has_background) :]


def planes_of(classes: Sequence[int], *, has_background: bool) -> list[int]:
    """Planes of a segmenter's output that belong to background, where it has one, and to these classes."""
    first = int(has_background)
    return [*range(first), *(index + first for index in classes)]


def _resized(scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    height, width = size
    if scores.shape[1:] == size:
        return np.array(scores, np.float32)
    grown = np.empty((len(scores), height, width), np.float32)
    for plane, small in zip(grown, scores, strict=True):
        cv2.resize(
            np.ascontiguousarray(small, np.float32), (width, height), plane, interpolation=cv2.INTER_LINEAR
        )
    return grown
