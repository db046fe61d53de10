"""Smooth random outlines of bodies."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from wsss_rt.scenes.noise import F32, U8

_POINTS = 56
_ANGLES = np.linspace(0.0, 2.0 * math.pi, _POINTS, endpoint=False)
_COS, _SIN = np.cos(_ANGLES), np.sin(_ANGLES)
_SHIFT = 4  # fractional bits of OpenCV's polygon vertices


def _ellipse(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return np.stack([_COS, _SIN * rng.uniform(0.6, 1.0)], 1)


def _superellipse(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    power = 2.0 / rng.uniform(2.8, 7.0)
    x = np.sign(_COS) * np.abs(_COS) ** power
    y = np.sign(_SIN) * np.abs(_SIN) ** power
    return np.stack([x, y * rng.uniform(0.55, 1.0)], 1)


def _blob(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    radius = np.ones(_POINTS)
    for k in (2, 3, 4, 5):
        radius += rng.uniform(0.03, 0.24) / math.sqrt(k) * np.cos(k * _ANGLES + rng.uniform(0, 6.283))
    return np.stack([radius * _COS, radius * _SIN * rng.uniform(0.75, 1.0)], 1)


def _rounded_polygon(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    corners = int(rng.integers(3, 8))
    angles = (np.arange(corners) + rng.uniform(-0.22, 0.22, corners)) * (2.0 * math.pi / corners)
    points = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.7, 1.0)], 1)
    cut = rng.uniform(0.16, 0.3)
    for _ in range(3):  # Chaikin's corner cutting
        following = np.roll(points, -1, 0)
        points = np.stack([(1 - cut) * points + cut * following, cut * points + (1 - cut) * following], 1)
        points = points.reshape(-1, 2)
        cut = 0.25
    return points


def _bean(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    thin = rng.uniform(0.5, 0.65)
    return np.stack([_COS, thin * _SIN + rng.uniform(0.3, 0.55) * (_COS * _COS - 0.5)], 1)


def _capsule(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    half = rng.uniform(0.35, 0.9)
    taper = 1.0 + rng.uniform(-0.3, 0.3) * _COS
    return np.stack([_COS + half * np.tanh(_COS * 9.0), _SIN * taper], 1)


def _egg(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return np.stack([_COS, _SIN * rng.uniform(0.65, 0.9) * (1.0 + rng.uniform(0.2, 0.45) * _COS)], 1)


_SHAPES = (_ellipse, _superellipse, _blob, _blob, _rounded_polygon, _rounded_polygon, _bean, _capsule, _egg)


def body_outline(rng: np.random.Generator, extent: float) -> tuple[F32, int, float]:
    """A random closed outline whose larger bounding-box side is `extent` pixels.

    Returns the vertices (N, 2) in pixels within a square canvas with a margin of 2, the canvas' side, and the
    direction of the body's long axis in radians.
    """
    points = _SHAPES[int(rng.integers(len(_SHAPES)))](rng)
    angle = float(rng.uniform(0.0, 2.0 * math.pi))
    c, s = math.cos(angle), math.sin(angle)
    points = points @ np.array([[c, s], [-s, c]])
    low, high = points.min(0), points.max(0)
    points = (points - (low + high) / 2.0) * (extent / float((high - low).max()))
    side = math.ceil(extent) + 4
    return (points + side / 2.0).astype(np.float32), side, angle


def fill_outline(outline: F32, side: int) -> U8:
    """Coverage of the outline's inside, (side, side) uint8, antialiased."""
    coverage = np.zeros((side, side), np.uint8)
    vertices = np.rint(outline * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(coverage, [vertices], 255, cv2.LINE_AA, _SHIFT)
    return coverage


def draw_outline(canvas: U8, outline: F32, color: tuple[float, float, float], thickness: int) -> None:
    """Draw the border itself onto a (side, side, 3) canvas, in place."""
    vertices = np.rint(outline * (1 << _SHIFT)).astype(np.int32)
    cv2.polylines(canvas, [vertices], True, color, thickness, cv2.LINE_AA, _SHIFT)
