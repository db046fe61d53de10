"""Random walk over pairwise affinity (PSA, Ahn and Kwak, CVPR 2018), without its matrix.

PSA forms a dense matrix of all pairs of cells and squares it. But a cell has at most 68 neighbours, so here
the scores take the steps one by one: memory grows with the pixels and not with their square, and numbers are
the same to rounding. Cells are 8 x 8 pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from wsss_rt.refine.walk_params import STRIDE, WalkParams, pair_offsets

if TYPE_CHECKING:
    from numpy.typing import NDArray


def random_walk(
    scores: NDArray[np.float32], affinity: NDArray[np.float32], params: WalkParams | None = None
) -> NDArray[np.float32]:
    """Spread scores over cells of high affinity.

    Args:
        scores: (C' + 1, H, W) float32 in 0..1; plane 0 is background.
        affinity: (K, rows, columns) float32 in 0..1 over the cells of the image padded at its right and
            bottom, one plane for each of ``pair_offsets``: what a cell and its neighbour there have in
            common.
        params: parameters; None takes the defaults.

    Returns:
        (C' + 1, H, W) float32 in 0..1, bilinear between cells. Classes that are 0 everywhere stay 0.

    Raises:
        ValueError: arrays of other shapes, a mistake of the caller.
    """
    params = params or WalkParams()
    if scores.ndim != 3 or not scores.size:
        raise ValueError(f"expected scores (C + 1, H, W) with pixels, got {scores.shape}")
    height, width = scores.shape[1:]
    cells = (-(-height // STRIDE), -(-width // STRIDE))
    if affinity.ndim != 3 or affinity.shape[1:] != cells:
        raise ValueError(f"expected affinity (K, {cells[0]}, {cells[1]}), got {affinity.shape}")
    walked = walk(pool(with_background(scores, params.alpha)), affinity, params)
    result = np.empty((len(scores), height, width), np.float32)
    size = (cells[1] * STRIDE, cells[0] * STRIDE)
    for plane, small in zip(result, walked, strict=True):
        plane[:] = cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)[:height, :width]
    return result


def with_background(scores: NDArray[np.float32], alpha: float | None) -> NDArray[np.float32]:
    """The scores with the background (1 - best class)^alpha; as they are where alpha is None."""
    if alpha is None or len(scores) < 2:
        return scores
    background = (1 - scores[1:].max(axis=0)).clip(0, 1) ** np.float32(alpha)
    return np.concatenate((background[None].astype(np.float32), scores[1:]))


def pool(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of each cell, (C, H, W) to (C, rows, columns); what lies outside the image counts as 0."""
    count, height, width = scores.shape
    rows, columns = -(-height // STRIDE), -(-width // STRIDE)
    pooled = np.empty((count, rows, columns), np.float32)
    padded = np.zeros((rows * STRIDE, columns * STRIDE), np.float32)
    for plane, full in zip(pooled, scores, strict=True):
        padded[:height, :width] = full
        plane[:] = padded.reshape(rows, STRIDE, columns, STRIDE).mean(axis=(1, 3))
    return pooled


def walk(
    values: NDArray[np.float32], affinity: NDArray[np.float32], params: WalkParams
) -> NDArray[np.float32]:
    """``params.steps`` steps of a walk whose transitions are affinity to the power of beta.

    The matrix of PSA is symmetric with ones on its diagonal; each column is divided by its sum, so that a
    new value is a mean of old ones, weighted by affinity.

    Args:
        values: (C, rows, columns) float32.
        affinity: (K, rows, columns), see :func:`random_walk`.
        params: radius, beta and steps.

    Returns:
        (C, rows, columns) float32.
    """
    count, rows, columns = values.shape
    weights, shifts = _transitions(affinity, params)
    # Pairs become shifts of the flattened grid: those that would run over an edge weigh nothing. A plane at a
    # time stays in the processor's cache
    cells = rows * columns
    # hundreds of steps in float32 drift by 2e-5, which is all that the official float32 matrix may be off
    total = np.ones(cells)
    for weight, shift in zip(weights, shifts, strict=True):
        total[: cells - shift] += weight
        total[shift:] += weight
    scale = 1 / total
    result = values.astype(np.float64).reshape(count, cells)
    product, after = np.empty(cells), np.empty(cells)
    for row in range(count):
        before = result[row]
        for _ in range(params.steps if before.any() else 0):
            np.copyto(after, before)
            for weight, shift in zip(weights, shifts, strict=True):
                part = product[: cells - shift]
                np.multiply(weight, before[shift:], out=part)
                after[: cells - shift] += part
                np.multiply(weight, before[: cells - shift], out=part)
                after[shift:] += part
            np.multiply(after, scale, out=before)
    return result.reshape(count, rows, columns).astype(np.float32)


def _transitions(
    affinity: NDArray[np.float32], params: WalkParams
) -> tuple[list[NDArray[np.float64]], list[int]]:
    """Weights and flat shifts of the pairs: weights (cells - shift,) of the cells that a pair begins at.

    PSA's pairs begin in a part of the grid alone: not in the last four rows, nor in the first and last four
    columns, so that ten cells in three corners have no neighbour. A grid smaller than that would have no pair
    at all; here it has all that lie within it.
    """
    margin = params.radius - 1
    rows, columns = affinity.shape[1:]
    cropped = rows > margin and columns > 2 * margin
    weights, shifts = [], []
    for (dy, dx), plane in zip(_offsets_of(affinity), affinity, strict=True):
        if dx * dx + dy * dy >= params.radius**2:
            continue
        top, left, right = (margin, margin, margin) if cropped else (dy, max(-dx, 0), max(dx, 0))
        bottom, end = rows - top, columns - right
        if bottom <= 0 or end <= left:
            continue
        full: NDArray[np.float64] = np.zeros((rows, columns))
        full[:bottom, left:end] = plane[:bottom, left:end].astype(np.float64) ** params.beta
        shift = dy * columns + dx
        weights.append(np.ascontiguousarray(full.reshape(-1)[: rows * columns - shift]))
        shifts.append(shift)
    return weights, shifts


def _offsets_of(affinity: NDArray[np.float32]) -> tuple[tuple[int, int], ...]:
    """The offsets that the planes of an affinity stand for, found by their number."""
    for radius in range(2, 33):
        offsets = pair_offsets(radius)
        if len(offsets) == len(affinity):
            return offsets
    raise ValueError(f"{len(affinity)} planes of affinity are those of no radius")
