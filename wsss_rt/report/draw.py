"""Masks drawn over their images."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsss_rt.classes import BACKGROUND, IGNORE, WIDE_IGNORE, ClassSet, ignore_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Uint8 = NDArray[np.uint8]
    Mask = NDArray[np.uint8] | NDArray[np.uint16]

OVERLAY_SIDE = 1600
THUMBNAIL_HEIGHT = 224
# a panorama or a strip must not make a thumbnail of thousands of pixels
_THUMBNAIL_WIDTH = 2 * THUMBNAIL_HEIGHT
_FILL = 0.6
_FADE = 0.6
_DIVIDER = 4
_DARK, _LIGHT = (24, 26, 31), (232, 234, 237)


def display_color(value: int, *, wide: bool = False) -> tuple[int, int, int]:
    """RGB of a mask value as drawn on pictures; ``wide`` for masks of 16 bits, where 255 is a class.

    Not the VOC palette of the mask files: some of its colours differ in brightness alone (classes 1, 8
    and 9 are three reds), and under a half-transparent tint they cannot be told apart.
    """
    return tuple(int(channel) for channel in _display_table(wide)[value])  # type: ignore[return-value]


def blend(image: Uint8, mask: Mask) -> Uint8:
    """Fade the image, tint the pixels of each class, outline its regions; ignored pixels are hatched.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 or uint16 in the same raster.

    Returns:
        (H, W, 3) uint8.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"mask {mask.shape} does not fit image {image.shape[:2]}")
    colors = _display_table(mask.dtype == np.uint16)[mask]
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    # the class's colour must not mix with the object's own, or it cannot be told from another class's
    tinted = cv2.addWeighted(gray, 1 - _FILL, colors, _FILL, 0.0)
    faded = cv2.addWeighted(gray, _FADE, image, 1 - _FADE, 0.0)
    drawn = np.where((mask == BACKGROUND)[..., None], faded, tinted).astype(np.uint8)
    ignored = mask == ignore_value(mask)
    if ignored.any():
        rows, columns = np.indices(mask.shape, np.int32)
        stripe = ignored & ((rows + columns) % 8 < 2)
        drawn[stripe] = _LIGHT
    border = max(1, round(max(mask.shape) / 400))
    kernel = np.ones((2 * border + 1, 2 * border + 1), np.uint8)
    # the inner rim of every region, so that neighbours keep their own colour; ignored pixels are no region
    regions = mask.copy()
    regions[ignored] = BACKGROUND
    inner = cv2.erode(regions, kernel) != cv2.dilate(regions, kernel)
    rim = inner & (regions != BACKGROUND)
    drawn[rim] = (colors[rim] * 0.6 + 102).astype(np.uint8)
    halo = cv2.dilate(rim.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    halo &= regions == BACKGROUND
    drawn[halo] = (drawn[halo] * 0.35).astype(np.uint8)
    return drawn


def overlay(image: Uint8, mask: Mask, classes: ClassSet, *, max_side: int = OVERLAY_SIDE) -> Uint8:
    """An image with its mask and a legend of the classes in it below.

    Args:
        image: (H, W, 3) uint8 RGB, upright.
        mask: (H, W) uint8 or uint16, upright.
        classes: names of the mask's values.
        max_side: a larger image is scaled down to this many pixels.

    Returns:
        (h + legend, w, 3) uint8 RGB.
    """
    small_image, small_mask = _shrink(image, mask, max_side / max(mask.shape))
    drawn = blend(small_image, small_mask)
    values = [int(value) for value in np.unique(mask)]
    return np.vstack([drawn, _legend(values, classes, drawn.shape[1])])


def thumbnail(image: Uint8, mask: Mask) -> Uint8:
    """Image and overlay side by side, both at most 224 pixels high.

    Args:
        image: (H, W, 3) uint8 RGB, upright.
        mask: (H, W) uint8 or uint16, upright.
    """
    height, width = mask.shape
    scale = min(THUMBNAIL_HEIGHT / height, _THUMBNAIL_WIDTH / width)
    small_image, small_mask = _shrink(image, mask, scale)
    divider = np.full((len(small_mask), _DIVIDER, 3), _DARK, np.uint8)
    return np.hstack([small_image, divider, blend(small_image, small_mask)])


def encode_jpeg(image: Uint8, *, quality: int = 88) -> bytes:
    """Baseline JPEG of (H, W, 3) uint8 RGB; the same bytes for the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@lru_cache(maxsize=2)
def _display_table(wide: bool) -> Uint8:
    """(256 or 65536, 3): hues a golden angle apart in OKLCH, in three lightnesses: neighbours differ."""
    ignore = WIDE_IGNORE if wide else IGNORE
    index = np.arange(ignore + 1)
    hue = np.deg2rad(262.0 + 137.508 * index)
    lightness, chroma = np.array([0.70, 0.60, 0.80])[index % 3], 0.17
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])
    # OKLab to linear sRGB (Ottosson 2020)
    cones = np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728],
                      [1, -0.0894841775, -1.2914855480]]) @ lab  # fmt: skip
    linear = np.array([[4.0767416621, -3.3077115913, 0.2309699292],
                       [-1.2684380046, 2.6097574011, -0.3413193965],
                       [-0.0041960863, -0.7034186147, 1.7076147010]]) @ cones**3  # fmt: skip
    linear = np.clip(linear, 0, 1)
    gamma = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table = np.rint(gamma.T * 255).astype(np.uint8)
    table[BACKGROUND], table[ignore] = 0, _LIGHT
    return table


def _shrink(image: Uint8, mask: Mask, scale: float) -> tuple[Uint8, Mask]:
    if scale >= 1:
        return image, mask
    height, width = mask.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smaller = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    nearest = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    wide = mask.dtype == np.uint16
    return smaller.astype(np.uint8), nearest.astype(np.uint16) if wide else nearest.astype(np.uint8)


def _legend(values: list[int], classes: ClassSet, width: int) -> Uint8:
    """A strip that names the classes; wraps to as many rows as it needs."""
    names = classes.mask_names()
    entries = [(value, names.get(value, str(value))) for value in values if value != BACKGROUND]
    text_size = int(min(26, max(12, width / 42)))
    font = ImageFont.load_default(text_size)
    row, pad, swatch = round(text_size * 1.7), round(text_size * 0.6), text_size
    places: list[tuple[int, int]] = []
    x, y = pad, 0
    for _, name in entries or [(0, "background only")]:
        needed = swatch + pad + round(font.getlength(name)) + 2 * pad
        if x > pad and x + needed > width:
            x, y = pad, y + row
        places.append((x, y))
        x += needed
    strip = Image.new("RGB", (width, y + row), _DARK)
    draw = ImageDraw.Draw(strip)
    if not entries:
        draw.text((pad, row / 2), "background only", fill=(150, 154, 162), font=font, anchor="lm")
    for (value, name), (left, top) in zip(entries, places, strict=False):
        above = top + (row - swatch) // 2
        draw.rectangle(
            (left, above, left + swatch, above + swatch), fill=display_color(value, wide=classes.wide)
        )
        draw.text((left + swatch + pad, top + row / 2), name, fill=_LIGHT, font=font, anchor="lm")
    return np.array(strip, np.uint8)
