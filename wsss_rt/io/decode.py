"""Bytes of an image file to upright RGB pixels, or to the reason why that cannot be.

Files are read first, in ``reading.py``, and decoded from memory. The decoder is Pillow, which notices a
truncated JPEG where OpenCV returns a full array without a word.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from wsss_rt.errors import ImageError, ImageErrorCode
from wsss_rt.io.names import printable
from wsss_rt.io.pixels import Uint8, to_rgb
from wsss_rt.io.reading import MAX_BYTES, read_bytes
from wsss_rt.io.sniff import (
    SUPPORTED_FORMATS,
    describe_other,
    end_missing,
    foreign_image,
    image_format,
    png_damage,
    webp_size,
)

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "DecodedImage",
    "decode_image",
    "printable",
    "quiet_pillow",
    "read_bytes",
    "to_stored_raster",
]

MAX_PIXELS = 64_000_000
ORIENTATION_TAG = 0x0112

# Image.open() would check sizes against a global of the whole process, and warn through a machinery that
# is not thread-safe; the format's own class reads the same header without either
_OPENERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
# what Pillow raises on damaged files, besides OSError
_DAMAGE = (
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_JPEG_END = b"\xff\xd9"
# any bytes will do that are neither constant nor a marker
_JPEG_FILLER = bytes((37 * index + 165) % 251 for index in range(256))
# how Pillow begins the messages about files that are whole, but of a kind that it does not read
_UNKNOWN_PIXELS = (
    "unknown pixel mode",
    "unsupported",
    "cannot handle",
    "unrecognized",
    "unknown data organization",
)


@dataclass(frozen=True)
class DecodedImage:
    """An image as a person sees it.

    Attributes:
        upright: (H, W, 3) uint8 RGB, turned as EXIF says.
        orientation: EXIF orientation 1 to 8 that leads from the stored raster to ``upright``.
        stored_size: (width, height) as ``PIL.Image.open(file).size`` gives it, before EXIF.
        format: ``JPEG``, ``PNG``, ...
        mode: Pillow's mode of the file, such as ``RGB``, ``P``, ``I;16``.
        bit_depth: bits per channel in the file.
        notes: what a person might want to know, such as removed transparency; each one short sentence.
    """

    upright: Uint8
    orientation: int
    stored_size: tuple[int, int]
    format: str
    mode: str
    bit_depth: int
    notes: tuple[str, ...] = ()


def decode_image(data: bytes, *, max_pixels: float = MAX_PIXELS) -> DecodedImage:
    """Decode the first frame of an image file.

    The size is checked in the header, before any pixel is allocated. 16-bit gray is scaled to 8 (v / 257,
    rounded), 16-bit RGB by its high byte; transparency is laid over white, as viewers show it; CMYK is
    converted without its profile, and other profiles are ignored; each of these leaves a note.

    Args:
        data: the whole file.
        max_pixels: largest width x height that is decoded.

    Raises:
        ImageError: empty, not_an_image, unsupported_format, unsupported_pixels, too_large, truncated,
            corrupt, out_of_memory.
    """
    name = _identify(data)
    if name == "WEBP" and (size := webp_size(data)):
        _check_size(size, max_pixels)
    try:
        try:
            image, mode, depth, orientation, notes = _load(data, name, max_pixels)
        except ImageError as error:
            if name != "JPEG" or error.code != ImageErrorCode.TRUNCATED or not _is_complete(data):
                raise
            image, mode, depth, orientation, notes = _load(data.rstrip(b"\xff") + _JPEG_END, name, max_pixels)
        pixels = to_rgb(image, depth, notes)
        if note := _more_frames(image):
            notes.append(note)
    except MemoryError as error:
        raise ImageError(
            ImageErrorCode.OUT_OF_MEMORY, "there is not enough memory to decode this image"
        ) from error
    if name in ("JPEG", "PNG") and end_missing(data, name):
        notes.append(f"the {name} has no end marker, though all of its pixels are there")
    return DecodedImage(
        upright=_turn(pixels, orientation),
        orientation=orientation,
        stored_size=(pixels.shape[1], pixels.shape[0]),
        format=name,
        mode=mode,
        bit_depth=depth,
        notes=tuple(notes),
    )


def to_stored_raster(mask: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo the EXIF orientation, so that a mask lies over the file's own pixels.

    Args:
        mask: (H, W) or (H, W, C) in the upright raster.
        orientation: as :attr:`DecodedImage.orientation`.
    """
    # 6 and 8 are quarter turns and undo each other; every other orientation undoes itself
    return _turn(mask, {6: 8, 8: 6}.get(orientation, orientation))


def to_upright(mask: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn a mask of the file's raster as a person sees the image.

    Args:
        mask: (h, w) or (h, w, C) in the stored raster.
        orientation: as :attr:`DecodedImage.orientation`.
    """
    return _turn(mask, orientation)


def quiet_pillow() -> None:
    """Silence Pillow's warnings about odd metadata, in the whole process: for the command line."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _turn(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    if orientation == 2:
        array = array[:, ::-1]
    elif orientation == 3:
        array = array[::-1, ::-1]
    elif orientation == 4:
        array = array[::-1]
    elif orientation == 5:
        array = array.swapaxes(0, 1)
    elif orientation == 6:
        array = array[::-1].swapaxes(0, 1)
    elif orientation == 7:
        array = array[::-1, ::-1].swapaxes(0, 1)
    elif orientation == 8:
        array = array[:, ::-1].swapaxes(0, 1)
    elif orientation != 1:
        raise ValueError(f"EXIF orientation must be 1 to 8, not {orientation}")
    return np.ascontiguousarray(array)


def _identify(data: bytes) -> str:
    if not data:
        raise ImageError(
            ImageErrorCode.EMPTY,
            "the file is empty",
            fix="an interrupted copy leaves such files; copy it again",
        )
    if name := image_format(data):
        return name
    if foreign := foreign_image(data):
        raise ImageError(
            ImageErrorCode.UNSUPPORTED_FORMAT,
            f"{foreign[0]} files are not supported",
            why="supported are " + ", ".join(SUPPORTED_FORMATS),
            fix=foreign[1],
        )
    why, fix = describe_other(data)
    raise ImageError(ImageErrorCode.NOT_AN_IMAGE, "the file is not an image", why=why, fix=fix)


def _load(data: bytes, name: str, max_pixels: float) -> tuple[ImageFile, str, int, int, list[str]]:
    """The loaded image with its mode, bit depth and orientation, and notes about it."""
    try:
        image = _OPENERS[name](BytesIO(data))
        _check_size(image.size, max_pixels)
        _check_tiles(image, max_pixels)
        mode, depth = image.mode, _bit_depth(image, data)
        image.load()
        # Pillow turns a TIFF by itself, and gives its size upright from the start
        orientation, notes = (1, []) if name == "TIFF" else _orientation(image)
    except (OSError, *_DAMAGE) as error:
        raise _decoding_error(error, data, name) from error
    if name == "PNG" and (chunk := png_damage(data)):
        why = f"the checksum of its {chunk} chunk is wrong"
        raise ImageError(ImageErrorCode.CORRUPT, "the PNG file is damaged", why=why)
    return image, mode, depth, orientation, notes


def _is_complete(data: bytes) -> bool:
    """Whether a JPEG lacks its end marker and nothing else.

    The decoder takes what follows the last byte for pixels as long as some are missing: if it makes no
    difference what follows, none were. A progressive file may end between two passes over all pixels, where
    this does not tell.
    """
    if not end_missing(data, "JPEG"):
        return False
    digests = set()
    try:
        for ending in (_JPEG_END, _JPEG_FILLER + _JPEG_END):
            # half of an end marker would make one of the filler's first byte
            image = JpegImagePlugin.JpegImageFile(BytesIO(data.rstrip(b"\xff") + ending))
            if "progressive" in image.info:
                return False
            digests.add(hashlib.sha256(image.tobytes()).digest())
    except (OSError, *_DAMAGE):
        return False
    return len(digests) == 1


def _check_size(size: tuple[int, int], max_pixels: float) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            ImageErrorCode.TOO_LARGE,
            f"the image has {width} x {height} = {width * height / 1e6:.0f} million pixels",
            why=f"the limit is {max_pixels / 1e6:g} million",
            fix="make it smaller, or raise the limit",
        )


def _check_tiles(image: ImageFile, max_pixels: float) -> None:
    # libtiff allocates a whole tile, however small the image is that lies in it
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tile = [image.tag_v2.get(tag, 0) for tag in (322, 323)]
        if all(isinstance(side, int) for side in tile):
            _check_size((tile[0], tile[1]), 2 * max_pixels)


def _bit_depth(image: ImageFile, data: bytes) -> int:
    if isinstance(image, PngImagePlugin.PngImageFile):
        return data[24]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(258, (1,))
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    if image.mode.startswith("I"):
        return 16
    return {"1": 1, "F": 32}.get(image.mode, 8)


def _orientation(image: ImageFile) -> tuple[int, list[str]]:
    """EXIF orientation, and a note where the block cannot be read."""
    try:
        exif = image.getexif()
        value = exif.get(ORIENTATION_TAG, 1)
    except (OSError, *_DAMAGE):
        return 1, ["EXIF block cannot be read; taken as upright"]
    if image.info.get("exif") and not len(exif):
        return 1, ["EXIF block cannot be read; taken as upright"]
    if not isinstance(value, int) or not 1 <= value <= 8:
        # 0 is what many programs write for "unknown"
        return 1, [] if value == 0 else [f"EXIF orientation {value!r} is none of 1 to 8; taken as upright"]
    return value, []


def _more_frames(image: ImageFile) -> str:
    # n_frames would walk through a GIF of ten thousand frames to count them
    try:
        several = bool(getattr(image, "is_animated", False))
    except (OSError, *_DAMAGE):
        return "frames after the first cannot be read: the first is used"
    return "several frames or pages: the first is used" if several else ""


def _decoding_error(error: Exception, data: bytes, name: str) -> ImageError:
    text = " ".join(str(error).split())[:200]
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(ImageErrorCode.TOO_LARGE, f"a frame of the {name} is too large", why=text)
    whole = not end_missing(data, name)
    if whole and text.lower().startswith(_UNKNOWN_PIXELS) and not (name == "PNG" and png_damage(data)):
        return ImageError(
            ImageErrorCode.UNSUPPORTED_PIXELS,
            f"the {name} holds pixels of a kind that is not supported",
            why=text,
            fix="convert it to 8-bit RGB first",
        )
    if not whole or "truncated" in text.lower() or "eof" in text.lower():
        return ImageError(
            ImageErrorCode.TRUNCATED,
            f"the {name} file ends too early",
            why=text,
            fix="copy or download it again",
        )
    return ImageError(ImageErrorCode.CORRUPT, f"the {name} file is damaged", why=text)
