"""Masks as indexed PNG: the value is the class, the palette is what a viewer shows."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wsss_rt.classes import voc_palette
from wsss_rt.errors import WsssError
from wsss_rt.io.atomic import write_atomic
from wsss_rt.io.decode import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.results import Result

MASKS = "masks"
# measured on masks of photographs: level 9 takes ten times the time for a tenth of the bytes
_COMPRESS_LEVEL = 6


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """An indexed PNG with the VOC palette.

    Args:
        mask: (H, W) uint8; 0 background, class index + 1, 255 ignore.

    Returns:
        The file's bytes, the same for the same mask.

    Raises:
        ValueError: another shape or type.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8 or not mask.size:
        raise ValueError(f"a mask is (H, W) uint8, not {mask.shape} {mask.dtype}")
    image = Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette(_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_COMPRESS_LEVEL)
    return buffer.getvalue()


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Values of a mask that this package or another tool wrote.

    Args:
        path: an indexed or 8-bit gray PNG.

    Returns:
        (H, W) uint8.

    Raises:
        WsssError: code ``mask_unreadable``, or ``mask_not_indexed`` for a picture in colours.
    """
    name = printable(path)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode in ("P", "L"):
                return np.array(image, np.uint8)
            if image.mode == "1":
                return np.array(image.convert("L"), np.uint8) // 255
            if image.mode.startswith("I"):
                return _narrow(np.array(image), name)
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


def _narrow(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if values.size and (values.min() < 0 or values.max() > 255):
        raise WsssError(
            f"the mask {name} holds values up to {int(values.max())}",
            why="masks hold 0 to 254 and 255 for ignore",
            code="mask_range",
        )
    return values.astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no PNG"
    return str(error)


@lru_cache(maxsize=1)
def _palette() -> bytes:
    return bytes(channel for color in voc_palette() for channel in color)
