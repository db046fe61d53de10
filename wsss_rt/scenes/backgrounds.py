"""Backgrounds: neutral ones, and the context textures that accompany three of the classes."""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np

from wsss_rt.classes import SCENE_CLASSES
from wsss_rt.scenes.noise import U8, noise_view

Color = tuple[float, float, float]  # BGR, 0..255

WAVES, BRICKS, STARS = (SCENE_CLASSES.index(name) for name in ("waves", "bricks", "stars"))
CONTEXT_CLASSES = (STARS, WAVES, BRICKS)
CONTEXT_WITH_CLASS = 0.75
CONTEXT_WITHOUT_CLASS = 0.05


def hsv(hue: float, saturation: float, value: float) -> Color:
    """Hue, saturation and value in 0..1 (hue wraps, the others are clipped) to BGR in 0..255."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return 255.0 * blue, 255.0 * green, 255.0 * red


def tint(field: U8, dark: Color, light: Color) -> U8:
    """Map a grey field onto the straight line between two colours, (H, W, 3) uint8 BGR."""
    ramp = np.linspace(0.0, 1.0, 256, dtype=np.float32)[:, None]
    low, high = np.array(dark, np.float32), np.array(light, np.float32)
    table = low + ramp * (high - low)
    return cv2.applyColorMap(field, np.clip(table + 0.5, 0, 255).astype(np.uint8)[:, None, :])


def blend(under: U8, over: U8, weight: U8) -> U8:
    """Mix two images by a (H, W) uint8 weight of the upper one."""
    mixed = cv2.merge([weight, weight, weight])
    kept = cv2.multiply(under, cv2.bitwise_not(mixed), scale=1.0 / 255.0)
    return cv2.add(kept, cv2.multiply(over, mixed, scale=1.0 / 255.0))


def pick_contexts(rng: np.random.Generator, classes: tuple[int, ...]) -> tuple[int, ...]:
    """The context textures of an image: likely with their class, rare without it."""
    chances = rng.random(len(CONTEXT_CLASSES))
    return tuple(
        c
        for c, chance in zip(CONTEXT_CLASSES, chances, strict=True)
        if chance < (CONTEXT_WITH_CLASS if c in classes else CONTEXT_WITHOUT_CLASS)
    )


def _context(rng: np.random.Generator, which: int, height: int, width: int, unit: float) -> U8:
    if which == WAVES:  # water: long soft streaks
        field = noise_view(
            rng,
            "streaks",
            height,
            width,
            scale=rng.uniform(0.9, 1.5) / unit,
            angle=float(rng.uniform(-0.35, 0.35)),
        )
        hue = rng.uniform(0.49, 0.56)
        return tint(
            field, hsv(hue + 0.03, 0.85, rng.uniform(0.25, 0.4)), hsv(hue, 0.4, rng.uniform(0.7, 0.9))
        )
    if which == BRICKS:  # pebbles
        field = noise_view(rng, "cells", height, width, scale=rng.uniform(1.2, 2.2) / unit)
        hue = rng.uniform(0.06, 0.12)
        return tint(field, hsv(hue, 0.45, rng.uniform(0.12, 0.25)), hsv(hue, 0.3, rng.uniform(0.65, 0.85)))
    field = noise_view(rng, "ridges", height, width, scale=rng.uniform(0.8, 1.4) / unit)  # night clouds
    grain = noise_view(rng, "grain", height, width, scale=1.0 / unit)
    field = cv2.addWeighted(field, 0.75, grain, 0.4, -18)
    hue = rng.uniform(0.71, 0.79)
    return tint(field, hsv(hue, 0.8, rng.uniform(0.06, 0.15)), hsv(hue + 0.06, 0.5, rng.uniform(0.5, 0.75)))


def _neutral(rng: np.random.Generator, height: int, width: int, unit: float) -> U8:
    hue, saturation, value = rng.random(), rng.uniform(0.0, 0.75), rng.uniform(0.25, 0.85)
    first = hsv(hue, saturation, value)
    kind = rng.random()
    if kind < 0.2:  # gradient
        corners = rng.integers(0, 256, (2, 2)).astype(np.uint8)
        field = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
        second = hsv(
            hue + rng.normal(0, 0.12), saturation + rng.uniform(-0.3, 0.3), value + rng.uniform(-0.4, 0.4)
        )
    elif kind < 0.5:  # clouds
        field = noise_view(rng, "clouds", height, width, scale=rng.uniform(0.5, 3.0) / unit)
        second = hsv(
            hue + rng.normal(0, 0.12), saturation + rng.uniform(-0.3, 0.3), value + rng.uniform(-0.4, 0.4)
        )
    elif kind < 0.75:  # blotches
        field = noise_view(rng, "lumps", height, width, scale=rng.uniform(0.4, 1.1) / unit)
        level = int(rng.integers(100, 156))
        field = cv2.LUT(field, np.clip((np.arange(256) - level) * 9 + 128, 40, 215).astype(np.uint8))
        second = hsv(
            hue + rng.normal(0, 0.15), saturation + rng.uniform(-0.3, 0.3), value + rng.uniform(-0.35, 0.35)
        )
    else:  # grass, fur, cloth
        field = noise_view(
            rng,
            "fibre" if kind < 0.88 else "grain",
            height,
            width,
            scale=rng.uniform(0.7, 1.6) / unit,
            aniso=float(rng.uniform(0.7, 1.4)),
        )
        second = hsv(
            hue + rng.normal(0, 0.05), saturation, value + rng.choice((-1, 1)) * rng.uniform(0.15, 0.4)
        )
    return tint(field, first, second)


def _clutter(rng: np.random.Generator, canvas: U8) -> None:
    """A few single strokes and shapes, in place: never repeated, so never an emblem."""
    height, width = canvas.shape[:2]
    short = min(height, width)
    for _ in range(int(rng.integers(0, 6))):
        color = hsv(rng.random(), rng.uniform(0.0, 0.8), rng.uniform(0.15, 0.95))
        x, y = int(rng.integers(width)), int(rng.integers(height))
        kind = rng.random()
        if kind < 0.45:
            angle, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1.2) * short
            end = (int(x + reach * math.cos(angle)), int(y + reach * math.sin(angle)))
            cv2.line(canvas, (x, y), end, color, int(rng.integers(1, 2 + short // 40)), cv2.LINE_AA)
            continue
        axes = (int(rng.uniform(0.02, 0.2) * short), int(rng.uniform(0.02, 0.2) * short))
        start, stop = (0, 360) if kind < 0.75 else (int(rng.integers(360)), int(rng.integers(120, 700)))
        thickness = -1 if kind < 0.65 else int(rng.integers(1, 2 + short // 60))
        cv2.ellipse(
            canvas, (x, y), axes, float(rng.uniform(0, 180)), start, stop, color, thickness, cv2.LINE_AA
        )


def draw_background(rng: np.random.Generator, height: int, width: int, contexts: tuple[int, ...]) -> U8:
    """(H, W, 3) uint8 BGR: the contexts side by side, or a neutral background, with some clutter."""
    unit = min(height, width) / 224.0
    layers = [_context(rng, which, height, width, unit) for which in contexts]
    if not layers or rng.random() < 0.4:
        layers.append(_neutral(rng, height, width, unit))
    canvas = layers[0]
    for layer in layers[1:]:
        border = noise_view(rng, "clouds", height, width, scale=0.45 / unit)
        ramp = rng.permutation(np.array([0, 60, 195, 255])).astype(np.uint8).reshape(2, 2)
        slope = cv2.resize(ramp, (width, height), interpolation=cv2.INTER_LINEAR)
        field = cv2.addWeighted(border, 0.5, slope, 0.5, 0)
        level = 128 if len(contexts) > 1 else 150  # a neutral second layer takes the smaller part
        table = np.clip((np.arange(256) - level) * 12 + 128, 0, 255).astype(np.uint8)
        canvas = blend(canvas, layer, cv2.LUT(field, table))
    _clutter(rng, canvas)
    return canvas
