"""Any pixel layout that Pillow loads to (H, W, 3) uint8 RGB, without the silent losses of ``convert``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsss_rt.errors import ImageError, ImageErrorCode

Uint8 = NDArray[np.uint8]

# transparent parts are laid over white: what browsers and viewers show
BACKDROP = (255, 255, 255)
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339


def to_rgb(image: Image.Image, bit_depth: int, notes: list[str]) -> Uint8:
    """Pixels of a loaded image as (H, W, 3) uint8 RGB.

    Args:
        image: loaded.
        bit_depth: bits per channel in the file, which the mode alone does not tell.
        notes: receives a sentence for everything that was changed on the way.

    Raises:
        ImageError: unsupported_pixels, where no scale to 8 bits is known.
    """
    if image.info.get("icc_profile") and image.mode != "CMYK" and not _is_srgb(image.info["icc_profile"]):
        notes.append("colour profile ignored; colours are taken as sRGB")
    if image.mode == "F":
        raise ImageError(
            ImageErrorCode.UNSUPPORTED_PIXELS,
            "the image holds floating-point pixels",
            why="nothing in the file says which value is white",
            fix="scale it to 0-255 and save it with 8 bits",
        )
    if image.mode == "I" or image.mode.startswith("I;"):
        return _gray_from_integers(image, bit_depth, notes)
    if bit_depth > 8:
        notes.append(f"{bit_depth}-bit channels scaled to 8")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        return _over_backdrop(image, notes)
    if image.mode == "CMYK":
        notes.append("CMYK converted to RGB without its colour profile")
    try:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ValueError as error:
        raise ImageError(
            ImageErrorCode.UNSUPPORTED_PIXELS,
            f"{image.mode} pixels are not supported",
            why=str(error),
            fix="convert it to 8-bit RGB first",
        ) from error


def _gray_from_integers(image: Image.Image, bit_depth: int, notes: list[str]) -> Uint8:
    """Scale to 8 bits; ``convert("RGB")`` would clip everything above 255 to white."""
    tags: Any = getattr(image, "tag_v2", {})
    signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    if bit_depth > 16 or signed:
        kind = f"{'signed ' if signed else ''}{bit_depth}-bit integer"
        raise ImageError(
            ImageErrorCode.UNSUPPORTED_PIXELS,
            f"the image holds {kind} pixels",
            why="nothing in the file says which value is white",
            fix="scale it to 0-255 and save it with 8 bits",
        )
    values = np.asarray(image)
    white = (1 << bit_depth) - 1
    peak = int(values.max())
    # floor(v * 255 / white + 1/2) in integers, so that every machine rounds alike
    gray = ((values.astype(np.uint32) * 510 + white) // (2 * white)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:
        gray = 255 - gray
    elif peak <= white // 16:
        notes.append(f"very dark: no value above {peak} of {white}; stretch it if that is not meant")
    notes.append(f"{bit_depth}-bit gray scaled to 8")
    return np.repeat(gray[:, :, None], 3, axis=2)


def _over_backdrop(image: Image.Image, notes: list[str]) -> Uint8:
    rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    alpha = rgba.getchannel("A")
    low = alpha.getextrema()[0]
    if low == 255:
        return np.array(rgba.convert("RGB"))
    canvas = Image.new("RGB", rgba.size, BACKDROP)
    canvas.paste(rgba, mask=alpha)
    high = alpha.getextrema()[1]
    notes.append(
        "fully transparent: only the white behind it is left"
        if high == 0
        else "transparency removed: laid over white"
    )
    return np.array(canvas)


def _is_srgb(profile: bytes) -> bool:
    # nearly every photograph carries one of these; a note on each would hide the ones that matter
    return b"sRGB" in profile or b"s\0R\0G\0B" in profile or b"\0s\0R\0G\0B" in profile
