"""A dense CRF in plain Python and float64: a dictionary of vertices, written for reading, not for speed."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from wsss_rt.refine.params import CrfParams

Corner = tuple[tuple[int, ...], float]


def simplex(feature: NDArray[np.float64]) -> list[Corner]:
    """The d+1 vertices around a feature vector (in standard deviations), with its barycentric weights."""
    d = len(feature)
    unit = (d + 1) * math.sqrt(2 / 3)
    lifted = np.zeros(d + 1)
    for i, value in enumerate(feature):
        # column i of the basis: i+1 ones, then -(i+1), then zeros
        lifted[: i + 1] += value * unit / math.sqrt((i + 1) * (i + 2))
        lifted[i + 1] -= (i + 1) * value * unit / math.sqrt((i + 1) * (i + 2))
    base = np.rint(lifted / (d + 1)) * (d + 1)
    misses = round(base.sum() / (d + 1))
    # the coordinates that rounding moved furthest in the wrong direction are moved back
    order = sorted(range(d + 1), key=lambda i: (-(lifted[i] - base[i]), i))
    for i in order[len(order) - misses :] if misses > 0 else order[:-misses]:
        base[i] -= (d + 1) * math.copysign(1, misses)
    order = sorted(range(d + 1), key=lambda i: (-(lifted[i] - base[i]), i))
    offset = [(lifted[i] - base[i]) / (d + 1) for i in order]
    corners = []
    for k in range(d + 1):
        key = base + k
        key[order[d + 1 - k :]] -= d + 1
        weight = 1 + offset[d] - offset[0] if k == 0 else offset[d - k] - offset[d + 1 - k]
        corners.append((tuple(int(value) for value in key), weight))
    return corners


def filtered(pixels: list[list[Corner]], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Splat, blur and slice (N, C) values."""
    d = len(pixels[0]) - 1
    empty = np.zeros(values.shape[1])
    grid: dict[tuple[int, ...], NDArray[np.float64]] = defaultdict(lambda: np.zeros(values.shape[1]))
    for corners, value in zip(pixels, values, strict=True):
        for key, weight in corners:
            grid[key] = grid[key] + weight * value
    for axis in range(d + 1):
        step = np.ones(d + 1, int)
        step[axis] = -d
        grid = {
            key: value
            + 0.5 * (grid.get(tuple(key + step), empty) + grid.get(tuple(np.array(key) - step), empty))
            for key, value in grid.items()
        }
    return np.array([sum(weight * grid[key] for key, weight in corners) for corners in pixels]) / (1 + 2**-d)


def features(image: NDArray[np.uint8], sxy: float, srgb: float | None) -> NDArray[np.float64]:
    """(N, 2) positions, or (N, 5) positions and colours, in standard deviations."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    position = np.stack([x.ravel(), y.ravel()], axis=1) / sxy
    return position if srgb is None else np.hstack([position, image.reshape(-1, 3) / srgb])


def mean_field(
    image: NDArray[np.uint8], probabilities: NDArray[np.float32], params: CrfParams, *, exact: bool = False
) -> NDArray[np.float64]:
    """Marginals (C, H, W); ``exact`` sums over all pairs of pixels in place of the lattice."""
    unary = -np.log(np.clip(probabilities.astype(np.float64), 1e-5, 1)).reshape(len(probabilities), -1).T
    apply = []
    for sxy, srgb, strength in (
        (params.spatial_sxy, None, params.spatial_compat),
        (params.bilateral_sxy, params.bilateral_srgb, params.bilateral_compat),
    ):
        points = features(image, sxy, srgb)
        if exact:
            distance = ((points[:, None] - points[None]) ** 2).sum(-1)
            matrix = np.exp(-distance / 2)
            plain = lambda values, matrix=matrix: matrix @ values  # noqa: E731
        else:
            pixels = [simplex(point) for point in points]
            plain = lambda values, pixels=pixels: filtered(pixels, values)  # noqa: E731
        scale = 1 / np.sqrt(plain(np.ones((len(points), 1))) + 1e-20)
        apply.append(lambda q, plain=plain, scale=scale, w=strength: w * scale * plain(scale * q))
    energy = -unary
    for step in range(params.iterations + 1):
        q = np.exp(energy - energy.max(axis=1, keepdims=True))
        q /= q.sum(axis=1, keepdims=True)
        if step < params.iterations:
            energy = -unary + sum(kernel(q) for kernel in apply)
    return q.T.reshape(probabilities.shape)
