"""Token maps to pixels: bilinear or bicubic, with half-pixel centres or with aligned corners."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.model_card import Upsample


def resize_map(
    tokens: NDArray[np.float32], size: tuple[int, int], *, upsample: Upsample = "bilinear"
) -> NDArray[np.float32]:
    """A map at another size, without antialiasing, as ``torch.nn.functional.interpolate`` does it.

    Args:
        tokens: (h, w) float32.
        size: (H, W) of the result.
        upsample: ``bilinear`` and ``bicubic``: values are the centres of equal parts of a side; ``aligned``:
            bilinear, and the first and last value of a side keep their places (``align_corners=True``).
            Methods differ in which one their authors took.

    Returns:
        (H, W) float32.
    """
    height, width = size
    if upsample == "aligned":
        rows, columns = (_aligned(*pair) for pair in zip(tokens.shape, size, strict=True))
        return np.asarray(rows @ tokens @ columns.T, np.float32)
    small = np.ascontiguousarray(tokens, np.float32)
    method = cv2.INTER_CUBIC if upsample == "bicubic" else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(small, (width, height), interpolation=method), np.float32)


@lru_cache(maxsize=16)
def _aligned(source: int, target: int) -> NDArray[np.float32]:
    """(target, source) weights of a side; OpenCV has no aligned corners, and two small products are quick."""
    step = (source - 1) / (target - 1) if target > 1 else 0.0
    places = np.arange(target) * step
    first = np.minimum(places.astype(np.int64), max(source - 2, 0))
    second = np.minimum(first + 1, source - 1)
    weights = np.zeros((target, source))
    np.add.at(weights, (np.arange(target), first), 1 - (places - first))
    np.add.at(weights, (np.arange(target), second), places - first)
    return weights.astype(np.float32)
