"""Token maps to a mask in plain PyTorch: what the kernels are held against, and what runs without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wsss_rt.kernels.map_to_mask.taps import Taps


def planes(tokens: Tensor, taps: Taps, normalise: str, epsilon: float) -> Iterator[Tensor]:
    """Normalised planes (H, W) of the maps, one after another; see :func:`map_planes`."""
    for values in tokens:
        plane = torch.zeros((), dtype=tokens.dtype, device=tokens.device)
        for row, row_weight, column, column_weight in zip(*taps, strict=True):
            resized = torch.zeros_like(plane)
            # along rows, then down columns, tap by tap: the order of the kernel, and of OpenCV
            for starts, down in zip(row.unbind(1), row_weight.unbind(1), strict=True):
                across = torch.zeros_like(plane)
                for places, along in zip(column.unbind(1), column_weight.unbind(1), strict=True):
                    across = across + values[starts[:, None] + places] * along
                resized = resized + across * down[:, None]
            plane = plane + resized
        if normalise == "peak":
            plane = plane.clamp(min=0)
        low = plane.min() if normalise == "minmax" else torch.zeros_like(plane.max())
        yield (plane - low) / (plane.max() - low + epsilon)


def decide(
    planes: Iterator[Tensor] | Tensor,
    classes: Sequence[int],
    size: tuple[int, int],
    *,
    background: float | Tensor,
    band: tuple[float, float] | None,
    sure: Tensor | None,
    ignore: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Mask (H, W) int32, and sums (1 + 2 K,) float64; see :func:`map_to_mask`."""
    best = torch.zeros(size, device=device) + background
    second, foreground = torch.zeros(size, device=device), torch.zeros(size, device=device)
    mask = torch.zeros(size, dtype=torch.int32, device=device)
    for plane, index in zip(planes, classes, strict=True):
        mask = torch.where(plane > best, index + 1, mask)
        second = torch.maximum(second, torch.minimum(plane, best))
        best, foreground = torch.maximum(best, plane), torch.maximum(foreground, plane)
    won = [mask == index + 1 for index in classes]
    scores = [torch.where(where, best, 0).sum(dtype=torch.float64) for where in won]
    sums = [(best - second).sum(dtype=torch.float64), *scores, *(where.sum().double() for where in won)]
    if sure is not None:
        mask = torch.where(sure, 0, torch.where(mask == 0, ignore, mask))
    if band is not None:
        low, high = (torch.tensor(limit, device=device) for limit in band)
        mask = torch.where((foreground >= low) & (foreground < high), ignore, mask)
    return mask, torch.stack(sums)
