"""Masks as PNG: the value is the class.

Masks of 8 bits are indexed, and their palette is what a viewer shows. PNG has no palette for 16 bits: wide
masks (more than 254 classes) are gray, nearly black in a viewer, and overlays are for looking at.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wsss_rt.classes import IGNORE, WIDE_IGNORE, voc_palette
from wsss_rt.errors import WsssError
from wsss_rt.io.atomic import write_atomic
from wsss_rt.io.decode import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.results import Result

    Mask = NDArray[np.uint8] | NDArray[np.uint16]

MASKS = "masks"
# measured on masks of photographs: level 9 takes ten times the time for a tenth of the bytes
_COMPRESS_LEVEL = 6


def encode_mask(mask: Mask) -> bytes:
    """An indexed PNG with the VOC palette, or a grey one of 16 bits.

    Args:
        mask: (H, W), uint8 for the indexed one or uint16; 0 background, class index + 1, ignore is the type's
            largest value.

    Returns:
        The file's bytes, the same for the same mask.

    Raises:
        ValueError: another shape or type.
    """
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.uint16) or not mask.size:
        raise ValueError(f"a mask is (H, W) uint8 or uint16, not {mask.shape} {mask.dtype}")
    image = Image.fromarray(np.ascontiguousarray(mask))
    if mask.dtype == np.uint8:
        image.putpalette(_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_COMPRESS_LEVEL)
    return buffer.getvalue()


def read_mask(path: Path, *, wide: bool = False) -> Mask:
    """Values of a mask that this package or another tool wrote.

    Args:
        path: an indexed or gray PNG.
        wide: it is of more than 254 classes. Without, a file of 16 bits must hold values of 8 bits; with it,
            the ignore value of a file of 8 bits becomes that of 16.

    Returns:
        (H, W) uint8, or uint16 where ``wide``.

    Raises:
        WsssError: code ``mask_unreadable``, ``mask_range`` for values that do not fit, or
            ``mask_not_indexed`` for a picture in colours.
    """
    values = _read_values(path)
    if values.dtype == np.uint8:
        if not wide:
            return values
        widened = values.astype(np.uint16)
        widened[values == IGNORE] = WIDE_IGNORE
        return widened
    limit, holder = (WIDE_IGNORE, "masks") if wide else (IGNORE, "masks of up to 254 classes")
    if values.size and (values.min() < 0 or values.max() > limit):
        raise WsssError(
            f"the mask {printable(path)} holds values up to {int(values.max())}",
            why=f"{holder} hold 0 to {limit - 1}, and {limit} for ignore",
            fix="" if wide else "if it has more classes, name them: --classes FILE",
            code="mask_range",
        )
    return values.astype(np.uint16) if wide else values.astype(np.uint8)


def _read_values(path: Path) -> NDArray[Any]:
    """What the file holds, as uint8, or as wider integers for a file of 16 bits."""
    name = printable(path)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode in ("P", "L"):
                return np.array(image, np.uint8)
            if image.mode == "1":
                return np.array(image.convert("L"), np.uint8) // 255
            if image.mode.startswith("I"):
                return np.array(image)
            mode = image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise WsssError(f"cannot read the mask {name}", why=_reason(error), code="mask_unreadable") from error
    raise WsssError(
        f"{name} is a picture in colours ({mode}), not a mask of class numbers",
        why="a colour says nothing about the class without the table that it was drawn with",
        fix="convert it to an 8-bit PNG with a class number per pixel (0 background, 255 ignore)",
        code="mask_not_indexed",
    )


class PngWriter:
    """``masks/<same path>.png``, lossless, of the size of the image file's raster."""

    name = "png"
    keys: tuple[str, ...] = ("mask",)
    needs: frozenset[str] = frozenset()

    def __init__(self, out: Path) -> None:
        self._out = out

    def add(self, result: Result) -> dict[str, str]:
        """Write the mask of one image.

        Raises:
            WsssError: it cannot be written.
        """
        data = result.png
        if data is None:
            if result.mask is None:
                raise ValueError(f"{result.relative} has no mask")
            data = encode_mask(result.mask)
        relative = f"{MASKS}/{result.mask_name}"
        write_atomic(self._out / relative, data)
        return {"mask": relative}

    def finish(self, records: Iterable[dict[str, Any]]) -> list[Path]:
        """Nothing is collected."""
        return []


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no PNG"
    return str(error)


@lru_cache(maxsize=1)
def _palette() -> bytes:
    return bytes(channel for color in voc_palette() for channel in color)
