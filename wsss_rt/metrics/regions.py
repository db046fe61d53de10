"""Connected regions of masks: every region's exact box, for many masks at once.

A mask is a list of runs (unbroken stretches of set pixels in one row). Runs of neighbouring rows that touch
are linked, and links are merged by union-find over whole arrays, so that the cost follows the number of
runs and not the number of pixels. The masks of all thresholds of one map are one such list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# 8: pixels that share a corner are neighbours; 4: only those that share a side
Connectivity = Literal[4, 8]
# runs that are held at once: some hundred megabytes with all that is derived from them
_RUNS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Runs:
    """The runs of a stack of masks, mask by mask in reading order.

    A position counts pixels over the whole stack; each row has one unset pixel behind it and each mask one
    unset row, so that no run reaches into the next row and no link into the next mask.

    Attributes:
        starts: (R,) int64 position of each run's first pixel, ascending.
        ends: (R,) int64 position behind each run's last pixel.
        shape: (masks, height, width) of the stack.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    shape: tuple[int, int, int]

    @property
    def pitch(self) -> int:
        """Positions from one row to the next."""
        return self.shape[2] + 1

    def complement(self) -> Runs:
        """The runs of the unset pixels."""
        masks, height, width = self.shape
        rows = np.arange(masks)[:, None] * (height + 1) + np.arange(height)
        edges = rows.ravel() * self.pitch
        # what lies between the runs of a row, and before and behind them
        starts = np.sort(np.concatenate([edges, self.ends]))
        ends = np.sort(np.concatenate([edges + width, self.starts]))
        kept = starts < ends
        return Runs(starts[kept], ends[kept], self.shape)

    def links(self, connectivity: Connectivity = 8) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of neighbouring runs.

        Returns:
            (L,) int64 indices of the upper runs, and (L,) of the runs below them.
        """
        above, behind = self.starts + self.pitch, self.ends + self.pitch
        corners = connectivity == 8
        first = np.searchsorted(self.ends, above, side="left" if corners else "right")
        last = np.searchsorted(self.starts, behind, side="right" if corners else "left")
        counts = np.maximum(last - first, 0)
        upper = np.repeat(np.arange(len(self.starts)), counts)
        return upper, np.repeat(first, counts) + _ramps(counts)


@dataclass(frozen=True)
class Regions:
    """The connected regions of a stack of masks: mask by mask, then by first pixel in reading order.

    Attributes:
        labels: (R,) int64 region of every run.
        masks: (N,) int64 mask that each region lies in.
        boxes: (N, 4) int64 left, top, right, bottom in pixels; right and bottom lie behind the last pixel,
            so that a region of one pixel has sides of 1.
        pixels: (N,) int64 set pixels of each region.
    """

    labels: NDArray[np.int64]
    masks: NDArray[np.int64]
    boxes: NDArray[np.int64]
    pixels: NDArray[np.int64]


def mask_runs(masks: NDArray[np.bool_]) -> Runs:
    """Runs of masks.

    Args:
        masks: (F, H, W) bool, or (H, W) for one.

    Raises:
        ValueError: another number of dimensions.
    """
    stack = masks[None] if masks.ndim == 2 else masks
    if stack.ndim != 3:
        raise ValueError(f"masks must be (H, W) or (F, H, W), not {masks.shape}")
    count, height, width = stack.shape
    padded = np.zeros((count, height + 1, width + 1), np.int8)
    padded[:, :height, :width] = stack
    steps = np.diff(padded.ravel(), prepend=np.int8(0))
    return Runs(np.flatnonzero(steps > 0), np.flatnonzero(steps < 0), (count, height, width))


def level_runs(levels: NDArray[np.integer], count: int) -> Iterator[tuple[slice, Runs]]:
    """Runs of the masks ``levels > 0``, ``levels > 1`` .. ``levels > count - 1``, some masks at a time.

    Args:
        levels: (H, W) integers of 0..count.
        count: number of masks.

    Yields:
        Which of the masks, and their runs.
    """
    height, width = levels.shape
    padded = np.zeros((height + 1, width + 1), np.int64)
    padded[:height, :width] = levels
    flat = padded.ravel()
    before = np.concatenate([[0], flat[:-1]])
    rising = flat > before
    # a rise from 3 to 5 begins a run in the masks 3 and 4
    begun = np.bincount(before[rising], minlength=count + 1) - np.bincount(flat[rising], minlength=count + 1)
    blocks = begun.cumsum()[:count].cumsum() // _RUNS_AT_ONCE
    for low, high in pairwise([0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), count]):
        here, there = np.clip(flat, low, high) - low, np.clip(before, low, high) - low
        runs = Runs(_crossings(there, here), _crossings(here, there), (high - low, height, width))
        yield slice(low, high), runs


def connect(runs: Runs, connectivity: Connectivity = 8) -> Regions:
    """Merge runs into regions.

    Args:
        runs: of a stack of masks.
        connectivity: 8 as for objects, or 4 as for the background between them.
    """
    upper, lower = runs.links(connectivity)
    roots = _union(len(runs.starts), upper, lower)
    first = np.flatnonzero(roots == np.arange(len(roots)))
    labels = np.searchsorted(first, roots)
    rows, left = np.divmod(runs.starts, runs.pitch)
    masks, rows = np.divmod(rows, runs.shape[1] + 1)
    lengths = runs.ends - runs.starts
    boxes = np.empty((len(first), 4), np.int64)
    boxes[:, 0], boxes[:, 1], boxes[:, 2:] = runs.shape[2], rows[first], 0
    np.minimum.at(boxes[:, 0], labels, left)
    np.maximum.at(boxes[:, 2], labels, left + lengths)
    np.maximum.at(boxes[:, 3], labels, rows + 1)
    pixels = np.zeros(len(first), np.int64)
    np.add.at(pixels, labels, lengths)
    return Regions(labels, masks[first], boxes, pixels)


def find_regions(mask: NDArray[np.bool_], connectivity: Connectivity = 8) -> Regions:
    """The connected regions of one mask (H, W)."""
    return connect(mask_runs(mask), connectivity)


def _crossings(low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions in the stack of all masks between ``low`` and ``high``, wherever ``high`` is larger."""
    at = np.flatnonzero(high > low)
    counts = high[at] - low[at]
    masks = np.repeat(low[at], counts) + _ramps(counts)
    return np.sort(masks * len(low) + np.repeat(at, counts))


def _ramps(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0..count-1 for every count, one after the other."""
    return np.arange(int(counts.sum())) - np.repeat(counts.cumsum() - counts, counts)


def _union(count: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """(count,) the lowest member of every member's group, groups being joined by pairs."""
    parent = np.arange(count)
    if not len(first):
        return parent
    # each member goes below its lowest neighbour; parents are never larger, so no circle can form
    np.minimum.at(parent, np.maximum(first, second), np.minimum(first, second))
    while True:
        above = parent[parent]
        if np.array_equal(above, parent):
            break
        parent = above
    roots = np.stack([parent[first], parent[second]])
    roots = roots[:, roots[0] != roots[1]]
    # few groups are still in pieces: the rest is the same task among these pieces alone
    pieces, numbered = np.unique(roots, return_inverse=True)
    numbered = numbered.reshape(roots.shape)
    parent[pieces] = pieces[_union(len(pieces), numbered[0], numbered[1])]
    joined: NDArray[np.int64] = parent[parent]
    return joined
