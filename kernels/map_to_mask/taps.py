"""Resizing as a weighted sum of few values: which ones and how much, for every row and column of pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

#: As ``wsss_rt.model_card.MapRule`` names them.
UPSAMPLES = ("bilinear", "aligned", "bicubic")
# of the cubic, as OpenCV and PyTorch have it
_SHARPNESS = -0.75


class Taps(NamedTuple):
    """How the values of one or several grids become pixels. Grids lie one after another in a flat buffer.

    Attributes:
        row: (G, H, taps) int32: where the row of values begins in the buffer, that a row of pixels takes.
        row_weight: (G, H, taps) float32.
        column: (G, W, taps) int32: column in the grid.
        column_weight: (G, W, taps) float32.
    """

    row: Tensor
    row_weight: Tensor
    column: Tensor
    column_weight: Tensor


@lru_cache(maxsize=64)
def taps_for(
    grids: tuple[tuple[int, int], ...], size: tuple[int, int], upsample: str, device: torch.device
) -> Taps:
    """The taps from grids (h, w) to pixels (H, W); positions are computed in float64, as OpenCV does.

    Args:
        grids: sizes of the grids, in the order in which they lie in the buffer.
        size: of the result.
        upsample: one of :data:`UPSAMPLES`, as ``wsss_rt.resize.resize_map`` explains them.
        device: where the taps shall be; kept there for the next image of this size.

    Raises:
        ValueError: an unknown way.
    """
    if upsample not in UPSAMPLES:
        raise ValueError(f"upsample {upsample!r} is none of {', '.join(UPSAMPLES)}")
    rows, columns, begin = [], [], 0
    for height, width in grids:
        place, weight = _axis(height, size[0], upsample)
        rows.append((begin + place * width, weight))
        columns.append(_axis(width, size[1], upsample))
        begin += height * width
    if begin >= 2**31:
        raise ValueError(f"{begin} values of a map are more than 32 bits can number")
    parts = [torch.stack(part) for pairs in (rows, columns) for part in zip(*pairs, strict=True)]
    kinds = (torch.int32, torch.float32) * 2
    return Taps(*(part.to(kind).to(device) for part, kind in zip(parts, kinds, strict=True)))


def _axis(source: int, target: int, upsample: str) -> tuple[Tensor, Tensor]:
    """Places (target, taps) and weights of a side; what lies beyond an end is its last value."""
    pixels = torch.arange(target, dtype=torch.float64)
    if upsample == "aligned":
        places = pixels * ((source - 1) / (target - 1) if target > 1 else 0.0)
    else:
        places = (pixels + 0.5) * (source / target) - 0.5
    first = places.floor()
    if upsample == "bicubic":
        weights = _cubic(places - first)
        taps = first[:, None] + torch.arange(-1, 3)
    else:
        share = places - first
        # beyond the outermost centres nothing is mixed
        share[(first < 0) | (first >= source - 1)] = 0
        first = first.clamp(0, source - 1)
        weights = torch.stack((1 - share, share), dim=1)
        taps = first[:, None] + torch.arange(2)
    return taps.clamp(0, source - 1).long(), weights


def _cubic(share: Tensor) -> Tensor:
    """Weights (..., 4) of the values at -1, 0, 1, 2 for a place that lies ``share`` behind the one at 0."""
    a, rest, beyond = _SHARPNESS, 1 - share, share + 1
    before = ((a * beyond - 5 * a) * beyond + 8 * a) * beyond - 4 * a
    near = ((a + 2) * share - (a + 3)) * share * share + 1
    after = ((a + 2) * rest - (a + 3)) * rest * rest + 1
    return torch.stack((before, near, after, 1 - before - near - after), dim=1)
