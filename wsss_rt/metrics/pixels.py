"""Maps before they are cut: resized and stretched, in float32 as the official evaluations do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def resize_bilinear(plane: NDArray[np.floating], height: int, width: int) -> NDArray[np.float32]:
    """Resize a map (h, w) to (height, width) float32: half-pixel centres, edges repeated, no antialiasing."""
    values = np.asarray(plane, np.float32)
    left, right, share = _taps(values.shape[1], width)
    across = values[:, left] * (1 - share) + values[:, right] * share
    upper, lower, share = _taps(values.shape[0], height)
    return np.asarray(across[upper] * (1 - share[:, None]) + across[lower] * share[:, None], np.float32)


def stretch(pixels: NDArray[np.floating]) -> NDArray[np.float32]:
    """A map (H, W) stretched to 0..1, float32; one that is constant, or holds NaN, becomes 0."""
    values = np.asarray(pixels, np.float32)
    low, high = values.min(), values.max()
    if not high > low:
        return np.zeros(values.shape, np.float32)
    return (values - low) / (high - low)


def normalised_map(tokens: NDArray[np.floating], side: int) -> NDArray[np.float32]:
    """Enlarge a token map (h, w) to (side, side), then :func:`stretch` it, in this order."""
    return stretch(resize_bilinear(tokens, side, side))


def _taps(size: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Both neighbours of every new pixel, and the share of the second."""
    place = ((np.arange(wanted) + 0.5) * (size / wanted) - 0.5).astype(np.float32)
    place = np.clip(place, 0, np.float32(size - 1))
    first = np.floor(place).astype(np.int64)
    return first, np.minimum(first + 1, size - 1), place - first.astype(np.float32)
