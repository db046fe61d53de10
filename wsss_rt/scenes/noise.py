"""Seamless noise tiles, computed once per process, and cheap random views of them.

Fresh noise for every image would cost more than the whole drawing budget (5 ms); a random rotated, scaled
and shifted view of a fixed 512x512 tile looks just as new and costs one warp.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[Any]  # uint8 by convention: the type stubs of OpenCV do not carry a dtype
F32 = npt.NDArray[np.float32]

TILE = 512
_TILE_SEED = 20240229  # changes every scene ever generated: never touch


def _to_u8(field: npt.NDArray[np.floating]) -> U8:
    """Stretch to mean 128 and about +-2.2 standard deviations over the range of uint8."""
    z = (field - field.mean()) / (field.std() + 1e-12)
    return np.clip(128.0 + 58.0 * z, 0, 255).astype(np.uint8)


def _spectral(rng: np.random.Generator, low: float, high: float, slope: float, stretch: float = 1.0) -> F32:
    """White noise shaped in frequency space: periodic by construction. Frequencies in cycles per tile."""
    fy = np.fft.fftfreq(TILE)[:, None] * TILE
    fx = np.fft.rfftfreq(TILE)[None, :] * TILE
    radius = np.hypot(fx * stretch, fy / stretch)
    gain = np.where(radius > 0, np.maximum(radius, 1.0) ** -slope, 0.0)
    gain = gain * np.exp(-((radius / high) ** 2)) * (1.0 - np.exp(-((radius / low) ** 2)))
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE))) * gain
    return np.fft.irfft2(spectrum, s=(TILE, TILE)).astype(np.float32)


def _cells(rng: np.random.Generator, count: int) -> U8:
    """Rounded pebbles: distance to the borders of a jittered Voronoi diagram, periodic."""
    side = int(round(math.sqrt(count)))
    step = TILE / side
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    points = (grid + rng.uniform(0.1, 0.9, grid.shape)) * step
    pad = 96
    seeds = np.full((TILE + 2 * pad, TILE + 2 * pad), 255, np.uint8)
    for dx in (-TILE, 0, TILE):
        for dy in (-TILE, 0, TILE):
            moved = np.rint(points + (dx + pad, dy + pad)).astype(int)
            inside = ((moved >= 0) & (moved < TILE + 2 * pad)).all(1)
            seeds[moved[inside, 1], moved[inside, 0]] = 0
    _, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    regions = labels.astype(np.float32)
    edges = (cv2.dilate(regions, np.ones((3, 3))) != cv2.erode(regions, np.ones((3, 3)))).astype(np.uint8)
    inner = cv2.distanceTransform(1 - edges, cv2.DIST_L2, 5)
    tone = (np.sin(regions * 12.9898) * 43758.5453) % 1.0
    field = np.minimum(inner / (0.22 * step), 1.0) * (0.55 + 0.45 * tone)
    return np.ascontiguousarray(np.clip(field * 255, 0, 255).astype(np.uint8)[pad:-pad, pad:-pad])


@cache
def noise_tile(kind: str) -> U8:
    """A seamless (512, 512) uint8 tile: clouds, lumps, grain, streaks, fibre, ridges, cells.

    `sensor` alone is (512, 1024, 3) and uncorrelated.
    """
    kinds = ("clouds", "lumps", "grain", "sensor", "streaks", "ridges", "cells", "fibre")
    rng = np.random.Generator(np.random.PCG64([_TILE_SEED, kinds.index(kind)]))
    if kind == "clouds":
        return _to_u8(_spectral(rng, 2.0, 60.0, 1.6))
    if kind == "lumps":
        return _to_u8(_spectral(rng, 6.0, 16.0, 0.0))
    if kind == "grain":
        return _to_u8(_spectral(rng, 12.0, 110.0, 0.5))
    if kind == "streaks":
        return _to_u8(_spectral(rng, 8.0, 40.0, 0.3, stretch=2.4))
    if kind == "fibre":
        return _to_u8(_spectral(rng, 20.0, 150.0, 0.4, stretch=3.0))
    if kind == "ridges":
        return _to_u8(-(np.abs(_spectral(rng, 4.0, 40.0, 1.0)) ** np.float32(0.6)))
    if kind == "cells":
        return _cells(rng, 18 * 18)
    return np.clip(128 + 40 * rng.standard_normal((TILE, TILE * 2, 3)), 0, 255).astype(np.uint8)


def inverse_affine(rng: np.random.Generator, scale: float, angle: float, aniso: float, span: float) -> F32:
    """(2, 3) matrix from target pixels to tile pixels: `scale` tile pixels per pixel, random shift < span."""
    c, s = math.cos(angle) * scale, math.sin(angle) * scale
    x, y = rng.uniform(0.0, span, 2)
    return np.array([[c, s * aniso, x], [-s, c * aniso, y]], np.float32)


def noise_view(
    rng: np.random.Generator,
    kind: str,
    height: int,
    width: int,
    *,
    scale: float = 1.0,
    angle: float | None = None,
    aniso: float = 1.0,
) -> U8:
    """A random (height, width) uint8 view of a tile; `scale` > 1 makes the texture finer."""
    if angle is None:
        angle = float(rng.uniform(0.0, 2.0 * math.pi))
    matrix = inverse_affine(rng, scale, angle, aniso, TILE)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(noise_tile(kind), matrix, (width, height), flags=flags, borderMode=cv2.BORDER_WRAP)


def sensor_crop(rng: np.random.Generator, height: int, width: int) -> U8:
    """Uncorrelated noise around 128 (sd 40), (height, width, 3) uint8, from a cached tile."""
    tile = noise_tile("sensor")
    if height > tile.shape[0] or width > tile.shape[1]:
        times = (-(-height // tile.shape[0]) + 1, -(-width // tile.shape[1]) + 1, 1)
        tile = np.tile(tile, times)
    y = int(rng.integers(0, tile.shape[0] - height + 1))
    x = int(rng.integers(0, tile.shape[1] - width + 1))
    return tile[y : y + height, x : x + width]
