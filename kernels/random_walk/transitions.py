"""The pairs of PSA's random walk, and what passes between them, in PyTorch."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_RADII = range(2, 33)


class Transitions(NamedTuple):
    """One step of a walk over n cells of a flattened grid, by K kinds of pairs.

    Attributes:
        weights: (B, K, n), affinity to the power of beta between a cell and the one ``shift`` further on; 0
            where there is no pair.
        shifts: of each kind, > 0.
        share: (B, n), one over the sum of a cell's weights, its own, which is 1, included.
    """

    weights: Tensor
    shifts: list[int]
    share: Tensor


@lru_cache(maxsize=8)
def pair_offsets(radius: int) -> tuple[tuple[int, int], ...]:
    """(rows, columns) from a cell to those nearer than ``radius`` that it pairs with, each pair once."""
    first = [(0, dx) for dx in range(1, radius)]
    others = [(dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius)]
    return (*first, *(offset for offset in others if offset[0] ** 2 + offset[1] ** 2 < radius**2))


def offsets_of(planes: int) -> tuple[tuple[int, int], ...] | None:
    """The offsets that so many planes of affinity stand for; None where they are those of no radius."""
    return next((pair_offsets(r) for r in _RADII if len(pair_offsets(r)) == planes), None)


def transitions(affinity: Tensor, *, beta: float, radius: int) -> Transitions:
    """What a step does.

    PSA's pairs begin in a part of the grid alone: not in the last four rows, nor in the first and last four
    columns. A grid smaller than that would have no pair at all; here it has all that lie within it.

    Args:
        affinity: (B, K, rows, columns) in 0..1, planes as :func:`pair_offsets` of some radius.
        beta: power of the affinity.
        radius: pairs are nearer than this.
    """
    batch, planes, rows, columns = affinity.shape
    margin = radius - 1
    cropped = rows > margin and columns > 2 * margin
    y = torch.arange(rows, device=affinity.device)[:, None]
    x = torch.arange(columns, device=affinity.device)
    kept, inside, shifts = [], [], []
    for plane, (dy, dx) in enumerate(offsets_of(planes) or ()):
        top, left, right = (margin, margin, margin) if cropped else (dy, max(-dx, 0), max(dx, 0))
        if dx * dx + dy * dy < radius**2 and top < rows and left + right < columns:
            kept.append(plane)
            inside.append((y < rows - top) & (x >= left) & (x < columns - right))
            shifts.append(dy * columns + dx)
    if not kept:
        return Transitions(
            affinity.new_zeros((batch, 0, rows * columns)), [], affinity.new_ones((batch, rows * columns))
        )
    weights = torch.where(torch.stack(inside), affinity[:, kept] ** beta, 0.0).flatten(2)
    total = torch.ones_like(weights[:, 0])
    for kind, shift in enumerate(shifts):
        total += weights[:, kind]
        total[:, shift:] += weights[:, kind, : rows * columns - shift]
    return Transitions(weights, shifts, 1 / total)
