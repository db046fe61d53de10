"""Composition of a scene: which items there are, where they go, and what the camera makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsss_rt.classes import SCENE_CLASSES
from wsss_rt.scenes.backgrounds import Color, blend, draw_background, hsv, pick_contexts, tint
from wsss_rt.scenes.emblems import emblem_region, pattern_view
from wsss_rt.scenes.noise import U8, noise_view, sensor_crop
from wsss_rt.scenes.shapes import body_outline, draw_outline, fill_outline

NUM_CLASSES = len(SCENE_CLASSES)
MIN_VISIBLE_AREA = 60  # pixels
MIN_VISIBLE_EMBLEM = 0.5
MIN_EXTENT = 26.0  # pixels: below, no pattern survives JPEG
_TRIES = 6
_HUE_SPREAD = 0.015  # of the colour circle, standard deviation; classes are 0.1 apart
_CLOSE_UP_EXTENT = 0.6, 0.95  # of the short side
_SHARE = 0.48, 0.7  # of a body that its emblem covers; the rest tells nothing
_SHARE_SMALL = 0.6, 0.7  # of bodies so small that less would not survive JPEG
_PLAIN, _BLANK_PATCH, _NOISE_PATCH = -1, -2, -3  # kinds of distractor; 0..9 are classes


@dataclass(frozen=True)
class Sprite:
    """A body in its own small canvas. class_index < 0 marks a distractor."""

    class_index: int
    image: U8
    coverage: U8
    body: npt.NDArray[np.bool_]
    emblem: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Layers:
    """A scene with the truth that its mask does not tell (for tests and statistics)."""

    jpeg: bytes
    mask: U8
    owner: npt.NDArray[np.uint8]
    emblem: npt.NDArray[np.bool_]
    classes: tuple[int, ...]
    objects: tuple[int, ...]
    contexts: tuple[int, ...]


def _ink(rng: np.random.Generator, kind: int, value: float) -> Color:
    """Vivid colour of a class's pattern: of the class's hue, lighter or darker than a body of this value.

    What scenes measure is where an object ends, not what it is called; docs/decisions.md tells what else was
    tried.
    """
    hue = kind / NUM_CLASSES + rng.normal(0, _HUE_SPREAD)
    brightness = rng.uniform(0.85, 1.0) if value < 0.62 else rng.uniform(0.3, 0.45)
    return hsv(hue, rng.uniform(0.75, 1.0), brightness)


def _patch_color(rng: np.random.Generator, saturation: float, value: float) -> Color:
    """Colour of a distractor's patch: any hue, as muted as its body, clearly lighter or darker."""
    step = rng.uniform(0.45, 0.7)
    brighter = value < 0.5 if abs(value - 0.5) > 0.1 else rng.random() < 0.5
    return hsv(rng.random(), saturation * rng.uniform(0.5, 1.1), value + (step if brighter else -step))


def make_sprite(rng: np.random.Generator, kind: int, extent: float, backdrop: Color, unit: float) -> Sprite:
    """Draw an object (kind 0..9) or a distractor (kind < 0) of the given extent in pixels."""
    outline, side, axis = body_outline(rng, extent)
    coverage = fill_outline(outline, side)
    body = coverage > 127
    for _ in range(4):
        hue, saturation, value = rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.3, 0.9)
        color = hsv(hue, saturation, value)
        if sum(abs(a - b) for a, b in zip(color, backdrop, strict=True)) > 130.0:
            break
    # Brightness of base texture and rounding, shared by body and emblem: both are one surface.
    shade = rng.integers(70, 186, (3, 3)).astype(np.uint8)
    shade[1, 1] = min(255, int(shade[1, 1]) + 50)
    texture = noise_view(
        rng,
        ("clouds", "grain", "lumps", "fibre")[int(rng.integers(4))],
        side,
        side,
        scale=rng.uniform(0.9, 2.2) / unit,
    )
    amount = float(rng.uniform(0.15, 0.5))
    field = cv2.addWeighted(
        cv2.resize(shade, (side, side), interpolation=cv2.INTER_CUBIC),
        0.6,
        texture,
        amount,
        -128 * (amount - 0.4),
    )
    depth = rng.uniform(0.16, 0.3)
    image = tint(
        field,
        hsv(hue - 0.02, saturation + 0.06, value - depth),
        hsv(hue + 0.02, saturation - 0.06, value + depth),
    )
    emblem = np.zeros_like(body)
    if kind != _PLAIN:
        share = float(rng.uniform(*(_SHARE if extent > 45 * unit else _SHARE_SMALL)))
        region = emblem_region(rng, coverage, axis, share)
        emblem = (region > 0.5) & body
        dark = _ink(rng, kind, value) if kind >= 0 else _patch_color(rng, saturation, value - 0.1)
        light = (min(255.0, dark[0] + 40.0), min(255.0, dark[1] + 40.0), min(255.0, dark[2] + 40.0))
        if kind >= 0:
            pattern = pattern_view(rng, kind, side, float(np.count_nonzero(emblem)))
        elif kind == _NOISE_PATCH:
            blotches = noise_view(rng, "lumps", side, side, scale=rng.uniform(1.0, 2.5) / unit)
            pattern = cv2.LUT(blotches, np.clip((np.arange(256) - 128) * 6 + 128, 0, 255).astype(np.uint8))
        else:
            pattern = np.full((side, side), int(rng.integers(110, 256)), np.uint8)
        strength = float(rng.uniform(0.85, 1.0))
        weight = (region * pattern * np.float32(strength)).astype(np.uint8)
        image = blend(image, tint(field, dark, light), weight)
    if rng.random() < 0.5:
        edge = hsv(hue, saturation, value - rng.uniform(0.2, 0.45))
        draw_outline(image, outline, edge, max(1, round(rng.uniform(0.8, 2.4) * unit)))
    return Sprite(kind, image, coverage, body, emblem)


def _pick_classes(rng: np.random.Generator) -> tuple[list[int], tuple[int, ...]]:
    """Class of each object, and the distinct classes."""
    distinct = rng.permutation(NUM_CLASSES)[: int(rng.choice(3, p=(0.5, 0.35, 0.15))) + 1]
    kinds = [int(c) for c in distinct]
    while len(kinds) < 4 and rng.random() < 0.35:
        kinds.append(int(rng.choice(distinct)))
    return kinds, tuple(sorted(int(c) for c in distinct))


def _extent(rng: np.random.Generator, short: int, crowd: int, close_up: bool) -> float:
    if close_up:
        return short * float(rng.uniform(*_CLOSE_UP_EXTENT))
    upper = 0.6 if crowd < 3 else 0.52
    return max(MIN_EXTENT, short * (0.10 + (upper - 0.10) * float(rng.beta(2.0, 1.2))))


def _place(
    rng: np.random.Generator, sprite: Sprite, taken: npt.NDArray[np.bool_]
) -> tuple[slice, slice, slice, slice] | None:
    """A position whose visible part behind `taken` is large enough: slices of the image and of the sprite."""
    height, width = taken.shape
    side = sprite.body.shape[0]
    margin = int(0.3 * side)
    total = max(1, int(np.count_nonzero(sprite.emblem)))
    area = int(np.count_nonzero(sprite.body))
    for _ in range(_TRIES):
        top = int(rng.integers(-margin, max(1 - margin, height - side + margin + 1)))
        left = int(rng.integers(-margin, max(1 - margin, width - side + margin + 1)))
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + side, height), min(left + side, width)
        image = slice(y0, y1), slice(x0, x1)
        local = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        free = ~taken[image]
        visible = np.count_nonzero(sprite.body[local] & free)
        if visible < max(MIN_VISIBLE_AREA, 0.45 * area):
            continue
        if sprite.class_index >= 0:
            shown = np.count_nonzero(sprite.emblem[local] & free)
            if shown < MIN_VISIBLE_EMBLEM * total:
                continue
        return (*image, *local)
    return None


def _compose(
    rng: np.random.Generator, canvas: U8, kinds: list[int], unit: float, close_up: bool
) -> tuple[U8, npt.NDArray[np.uint8], npt.NDArray[np.bool_], list[int]]:
    """Paint objects and distractors; returns mask, owner (1-based item, 0 none), emblem, placed objects."""
    height, width = canvas.shape[:2]
    backdrop: Color = tuple(float(v) for v in cv2.mean(canvas)[:3])  # type: ignore[assignment]
    count = 0 if close_up else int(rng.choice(4, p=(0.25, 0.35, 0.25, 0.15)))
    items = [*kinds, *(int(k) for k in rng.choice((_PLAIN, _BLANK_PATCH, _NOISE_PATCH), count))]
    # Front to back, so that every item knows what hides it; painted afterwards in the opposite order.
    order = [items[i] for i in rng.permutation(len(items))]
    taken = np.zeros((height, width), np.bool_)
    placed: list[tuple[Sprite, tuple[slice, slice, slice, slice]]] = []
    for kind in order:
        extent = _extent(rng, min(height, width), len(items), close_up)
        if kind < 0:
            extent = max(MIN_EXTENT, 0.8 * extent)
        sprite = make_sprite(rng, kind, extent, backdrop, unit)
        where = _place(rng, sprite, taken)
        if where is not None:
            taken[where[:2]] |= sprite.body[where[2:]]
            placed.append((sprite, where))
    if all(sprite.class_index < 0 for sprite, _ in placed):  # never a scene without an object
        taken[:] = False
        where = None
        while where is None:
            sprite = make_sprite(rng, kinds[0], 0.4 * min(height, width), backdrop, unit)
            where = _place(rng, sprite, taken)
        placed = [(sprite, where)]
    mask = np.zeros((height, width), np.uint8)
    owner = np.zeros((height, width), np.uint8)
    emblem = np.zeros((height, width), np.bool_)
    for number, (sprite, where) in reversed(list(enumerate(placed, 1))):
        image, local = where[:2], where[2:]
        coverage = np.ascontiguousarray(sprite.coverage[local])
        canvas[image] = blend(canvas[image], sprite.image[local], coverage)
        body = sprite.body[local]
        mask[image][body] = max(0, sprite.class_index + 1)
        owner[image][body] = number
        emblem[image][body] = sprite.emblem[local][body] & (sprite.class_index >= 0)
    return mask, owner, emblem, [s.class_index for s, _ in placed if s.class_index >= 0]


def _mute(canvas: U8) -> U8:
    """Half the saturation."""
    grey = cv2.cvtColor(cv2.cvtColor(canvas, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return np.asarray(cv2.addWeighted(canvas, 0.5, grey, 0.5, 0), np.uint8)


def _photograph(rng: np.random.Generator, canvas: U8) -> bytes:
    """Light, colour cast, blur, sensor noise and JPEG."""
    height, width = canvas.shape[:2]
    cast = rng.uniform(0.85, 1.15, 3)
    light = rng.uniform(0.7, 1.2, (2, 2, 1)) * cast / cast.mean()
    field = cv2.resize(light.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    canvas = cv2.multiply(canvas, field, dtype=cv2.CV_8U)
    if rng.random() < 0.4:
        canvas = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.4, 0.9)))
    strength = float(rng.uniform(0.02, 0.25))
    canvas = cv2.addWeighted(canvas, 1.0, sensor_crop(rng, height, width), strength, -128.0 * strength)
    ok, jpeg = cv2.imencode(".jpg", canvas, (cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 96))))
    if not ok:
        raise RuntimeError("OpenCV could not encode a JPEG")
    return jpeg.tobytes()


def render_layers(
    seed: int, index: int, height: int | None, width: int | None, *, close_up: bool = False
) -> Layers:
    """Everything about scene `index` of `seed`; depends on nothing else."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    short, aspect, wide = int(rng.integers(160, 257)), float(rng.uniform(1.05, 1.6)), rng.random() < 0.6
    long = max(short + 1, math.floor(short * aspect))
    default = (short, long) if wide else (long, short)
    height, width = height or default[0], width or default[1]
    kinds, distinct = _pick_classes(rng)
    if close_up:
        kinds, distinct = kinds[:1], (kinds[0],)
    contexts = pick_contexts(rng, distinct)
    canvas = _mute(draw_background(rng, height, width, contexts))
    mask, owner, emblem, objects = _compose(rng, canvas, kinds, min(height, width) / 224.0, close_up)
    jpeg = _photograph(rng, canvas)
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=NUM_CLASSES + 1)[1:])
    classes = tuple(int(c) for c in present)
    return Layers(jpeg, mask, owner, emblem, classes, tuple(objects), contexts)
