"""The ten class patterns and the region of a body that carries them."""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from wsss_rt.scenes.noise import F32, U8, inverse_affine

_PERIOD = 48  # pixels per period on the finest tile
_REPEATS = 8  # periods per tile, even so that staggered rows close up
_LEVELS = 4  # tiles halve in size from level to level, against aliasing
VARIANTS = 3  # line widths and arrangements per class

# Order of wsss_rt.classes.SCENE_CLASSES. Smallest period in pixels at which a person still tells the pattern,
# and how many periods fit along the emblem (its side as a square of equal area).
MIN_PERIOD = (5.0, 6.5, 6.0, 8.0, 7.0, 8.0, 9.0, 7.0, 9.0, 8.0)
REPEATS = (
    (2.6, 4.6),
    (2.4, 3.9),
    (2.7, 4.6),
    (2.0, 3.0),
    (2.2, 3.5),
    (2.2, 3.4),
    (1.9, 2.9),
    (2.1, 3.4),
    (1.9, 2.9),
    (2.1, 3.3),
)


def _grid() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    axis = (np.arange(_PERIOD * _REPEATS) + 0.5) / _PERIOD
    return axis[None, :], axis[:, None]


def _soft(signed: npt.NDArray[np.float64]) -> U8:
    """Signed distance in periods (positive inside) to antialiased coverage."""
    field = np.broadcast_to(signed, (_PERIOD * _REPEATS, _PERIOD * _REPEATS))
    return np.clip(127.5 + 255.0 * field * _PERIOD / 2.0, 0, 255).astype(np.uint8)


def _lines(height: npt.NDArray[np.float64], duty: float, steepness: float = 1.0) -> U8:
    """Parallel bands where the fractional part of `height` (in periods) lies in the duty share."""
    return _soft((duty / 2.0 - np.abs((height % 1.0) - 0.5)) / steepness)


def _stamp(motif: npt.NDArray[np.float64], *, stagger: bool, alternate: bool = False) -> U8:
    """Repeat a polygon (vertices in periods around 0) on a lattice."""
    up = 2
    size = _PERIOD * _REPEATS * up
    canvas = np.zeros((size, size), np.uint8)
    for row in range(_REPEATS):
        for column in range(-1, _REPEATS + 1):
            center = np.array([column + 0.5 + (0.5 if stagger and row % 2 else 0.0), row + 0.5])
            shape = -motif if alternate and (row + column) % 2 else motif
            vertices = np.rint((shape + center) * _PERIOD * up * 16).astype(np.int32)
            cv2.fillPoly(canvas, [vertices], 255, cv2.LINE_AA, 4)
    return cv2.resize(canvas, (size // up, size // up), interpolation=cv2.INTER_AREA)


def _star(inner: float) -> npt.NDArray[np.float64]:
    angles = np.arange(10) * math.pi / 5.0 - math.pi / 2.0
    radius = np.where(np.arange(10) % 2 == 0, 0.5, inner)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)


def _plus(reach: float, half: float) -> npt.NDArray[np.float64]:
    corner = [(half, reach), (half, half), (reach, half)]
    points: list[tuple[float, float]] = []
    for quarter in range(4):
        for x, y in corner:
            for _ in range(quarter):
                x, y = y, -x
            points.append((x, y))
    return np.array(points)


def _pattern(class_index: int, variant: int) -> U8:
    x, y = _grid()
    cx = (x % 1.0) - 0.5
    cy = (y % 1.0) - 0.5
    stagger = variant == 1
    sx = ((x + 0.5 * (np.floor(y) % 2)) % 1.0) - 0.5 if stagger else cx
    if class_index == 0:
        return _lines(y + 0.0 * x, (0.42, 0.5, 0.58)[variant])
    if class_index == 1:
        return _soft((0.31, 0.34, 0.37)[variant] - np.hypot(sx, cy))
    if class_index == 2:
        edge = np.minimum(0.5 - np.abs((2 * x % 1.0) - 0.5), 0.5 - np.abs((2 * y % 1.0) - 0.5)) / 2.0
        return _soft(edge * np.where((np.floor(2 * x) + np.floor(2 * y)) % 2 == 0, 1.0, -1.0))
    if class_index == 3:
        return _soft((0.095, 0.1, 0.12)[variant] - np.abs(np.hypot(sx, cy) - (0.36, 0.35, 0.34)[variant]))
    if class_index == 4:
        slope = (1.0, 1.2, 1.4)[variant]
        return _lines(y + slope * (np.abs(cx) - 0.25), (0.4, 0.45, 0.5)[variant], math.hypot(1.0, slope))
    if class_index == 5:
        return _stamp(_plus((0.38, 0.42, 0.4)[variant], (0.12, 0.13, 0.15)[variant]), stagger=stagger)
    if class_index == 6:
        return _stamp(_star((0.2, 0.21, 0.23)[variant]) * 0.98, stagger=stagger)
    if class_index == 7:
        bend = (0.24, 0.28, 0.32)[variant] * np.sin(2.0 * math.pi * x / 2.0)
        return _lines(y + bend, (0.4, 0.45, 0.5)[variant])
    if class_index == 8:
        joint = (0.075, 0.09, 0.105)[variant]  # half the mortar's width; courses are half a period high
        row = np.floor(2 * y)
        fraction = (2 * y) % 1.0
        flat = joint - np.minimum(fraction, 1.0 - fraction) / 2.0
        across = ((x + 0.5 * (row % 2)) % 1.0) - 0.5
        return _soft(np.maximum(flat, joint - np.abs(across)))
    triangle = np.array([(0.0, -0.46), (0.44, 0.36), (-0.44, 0.36)]) * (1.0, 0.96, 1.04)[variant]
    return _stamp(triangle, stagger=stagger, alternate=variant == 2)


@cache
def pattern_tile(class_index: int, variant: int, level: int) -> U8:
    """Seamless coverage tile of a class's pattern, uint8, `48 / 2**level` pixels per period."""
    if level == 0:
        return _pattern(class_index, variant)
    finer = pattern_tile(class_index, variant, level - 1)
    side = finer.shape[0] // 2
    return cv2.resize(finer, (side, side), interpolation=cv2.INTER_AREA)


def pattern_view(rng: np.random.Generator, class_index: int, side: int, emblem_area: float) -> U8:
    """A random view of the class's pattern, (side, side) uint8, its period fitted to the emblem's area."""
    low, high = REPEATS[class_index]
    period = max(MIN_PERIOD[class_index], math.sqrt(emblem_area) / float(rng.uniform(low, high)))
    level = min(_LEVELS - 1, max(0, math.floor(math.log2(_PERIOD / period))))
    scale = (_PERIOD >> level) / period
    tile = pattern_tile(class_index, int(rng.integers(VARIANTS)), level)
    aniso = float(rng.uniform(0.88, 1.14))
    matrix = inverse_affine(rng, scale, float(rng.uniform(0.0, 2.0 * math.pi)), aniso, tile.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(tile, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_WRAP)


def emblem_region(rng: np.random.Generator, coverage: U8, axis: float, share: float) -> F32:
    """Soft weight in 0..1, (side, side), of a coherent part that covers `share` of the body.

    The part is one end of the body behind a curved border, or a disc off the body's centre.
    """
    side = coverage.shape[0]
    half = side / 2.0
    ramp = np.arange(side, dtype=np.float32) - np.float32(half - 0.5)
    direction = axis + float(rng.uniform(-0.8, 0.8)) + (math.pi if rng.random() < 0.5 else 0.0)
    c, s = np.float32(math.cos(direction)), np.float32(math.sin(direction))
    if rng.random() < 0.6:
        along = c * ramp[None, :] + s * ramp[:, None]
        across = c * ramp[:, None] - s * ramp[None, :]
        field = along + across * across * np.float32(rng.uniform(-0.9, 0.9) / side)
    else:
        offset = np.float32(rng.uniform(0.1, 0.3) * side)
        field = np.sqrt((ramp[None, :] + c * offset) ** 2 + (ramp[:, None] + s * offset) ** 2)
    inside = field[coverage > 127]
    rank = min(inside.size - 1, int(inside.size * share))
    threshold = np.partition(inside, rank)[rank]
    return np.clip(threshold - field + np.float32(0.5), 0.0, 1.0)
