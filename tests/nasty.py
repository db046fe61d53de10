"""A folder with everything that a folder of images from the wild can hold, for tests."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsss_rt.errors import ImageErrorCode

WIDTH, HEIGHT = 96, 64
ORIENTATION = 0x0112
# the bytes are Latin-1; as UTF-8 they mean nothing
NOT_UTF8 = os.fsdecode(b"caf\xe9.jpg")


#: Text of a JSON file to what a crash, a full disk or a stray hand makes of it.
DAMAGED_JSON: tuple[Callable[[str], str], ...] = (
    lambda text: text[: len(text) // 2],
    lambda text: "",
    lambda text: "[]",
    lambda text: "\0\xff",
)


@dataclass
class NastyFolder:
    """What :func:`build_nasty_folder` wrote, by path relative to ``root``.

    Attributes:
        root: the folder.
        good: images that must be labelled, with the (width, height) that ``PIL.Image.open`` gives.
        bad: files that must fail, with the class of their error.
        orientations: EXIF orientations other than 1.
        unlisted: files that are no input at all.
    """

    root: Path
    good: dict[str, tuple[int, int]] = field(default_factory=dict)
    bad: dict[str, ImageErrorCode] = field(default_factory=dict)
    orientations: dict[str, int] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)

    def listed(self) -> list[str]:
        """Every path that must appear in a report, sorted."""
        return sorted([*self.good, *self.bad])

    def add_good(self, name: str, data: bytes, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
        """Write an image that must be labelled."""
        self._write(name, data)
        self.good[name] = size

    def add_bad(self, name: str, data: bytes, code: ImageErrorCode) -> None:
        """Write a file that must fail."""
        self._write(name, data)
        self.bad[name] = code

    def _write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def picture(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 RGB; its four corners differ, so that every turn of it shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = 40 + 170 * columns // max(width - 1, 1)
    green = 40 + 170 * rows // max(height - 1, 1)
    blue = np.where((rows < height // 3) & (columns < width // 3), 230, 60)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def encode(pixels: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    """A file's bytes, by Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(pixels: NDArray[Any] | None = None, *, orientation: int | None = None) -> bytes:
    """A JPEG, with an EXIF orientation where one is given."""
    options: dict[str, Any] = {"quality": 95, "subsampling": 0}
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    return encode(picture() if pixels is None else pixels, "JPEG", **options)


def png_file(width: int, height: int, bit_depth: int, color_type: int, rows: bytes) -> bytes:
    """A PNG of any bit depth, which Pillow cannot write; ``rows`` hold a zero filter byte before each row."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png16(values: NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG of (H, W) gray or (H, W, 3) RGB values."""
    height, width = values.shape[:2]
    raw = values.astype(">u2").reshape(height, -1).view(np.uint8)
    rows = np.hstack([np.zeros((height, 1), np.uint8), raw]).tobytes()
    return png_file(width, height, 16, 2 if values.ndim == 3 else 0, rows)


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises 900 million pixels."""
    return png_file(30_000, 30_000, 1, 0, bytes(3751))


def stored_turned(upright: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The raster that a camera with this EXIF orientation would have stored, by Pillow's own operations."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = Image.fromarray(upright)
    return np.asarray(image if undo is None else image.transpose(undo))


def flip_bits(data: bytes, at: float = 0.6) -> bytes:
    """``data`` with one damaged byte, at this part of its length."""
    damaged = bytearray(data)
    damaged[int(len(data) * at)] ^= 0xFF
    return bytes(damaged)


def build_nasty_folder(root: Path) -> NastyFolder:
    """Fill ``root`` (made here) with good images of odd kinds, bad files, links in circles, and odd names."""
    root.mkdir(parents=True, exist_ok=True)
    nasty = NastyFolder(root)
    _add_pixel_kinds(nasty)
    _add_orientations(nasty)
    _add_odd_names(nasty)
    _add_damaged(nasty)
    _add_special_files(nasty)
    return nasty


def _add_pixel_kinds(nasty: NastyFolder) -> None:
    rgb = picture()
    image = Image.fromarray(rgb)
    gray = rgb.mean(axis=2)
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, : WIDTH // 4] = 0
    nasty.add_good("plain.jpg", jpeg())
    nasty.add_good("gray16.png", png16((gray * 257).astype(np.uint16)))
    nasty.add_good("rgb16.png", png16(rgb.astype(np.uint16) * 257))
    nasty.add_good("cmyk.jpg", encode(image.convert("CMYK"), "JPEG", quality=95))
    nasty.add_good("palette.png", encode(image.quantize(16), "PNG", transparency=0))
    nasty.add_good("gray_alpha.png", encode(np.dstack([gray.astype(np.uint8), alpha]), "PNG"))
    nasty.add_good("bilevel.png", encode(image.convert("1"), "PNG"))
    nasty.add_good("rgba.png", encode(np.dstack([rgb, alpha]), "PNG"))
    others = [Image.fromarray(255 - rgb), Image.fromarray(rgb[::-1].copy())]
    nasty.add_good("animated.gif", encode(image, "GIF", save_all=True, append_images=others))
    nasty.add_good("animated.webp", encode(image, "WEBP", save_all=True, append_images=others, lossless=True))
    nasty.add_good("pages.tif", encode(image, "TIFF", save_all=True, append_images=others))
    nasty.add_good("bitmap.bmp", encode(image, "BMP"))
    nasty.add_good("portable.ppm", encode(image, "PPM"))
    nasty.add_good("tiny.png", encode(rgb[:1, :1].copy(), "PNG"), (1, 1))
    nasty.add_good("thin.png", encode(picture(400, 1), "PNG"), (400, 1))
    nasty.add_good("no_end.jpg", jpeg()[:-2])
    nasty.add_good("no_end.png", encode(rgb, "PNG")[:-12])


def _add_orientations(nasty: NastyFolder) -> None:
    for orientation in range(1, 9):
        stored = stored_turned(picture(), orientation)
        name = f"turned/exif_{orientation}.jpg"
        nasty.add_good(name, jpeg(stored, orientation=orientation), (stored.shape[1], stored.shape[0]))
        if orientation > 1:
            nasty.orientations[name] = orientation


def _add_odd_names(nasty: NastyFolder) -> None:
    for name in (
        "same.jpg",
        "same.png",
        "UPPER.JPG",
        "new\nline.jpg",
        "quote\"'.jpg",
        "-dash.jpg",
        "per%cent %s.jpg",
        "emoji \U0001f415.jpg",
        "composed \u00e9.jpg",
        "decomposed e\u0301.jpg",
        "dots.in.name.jpg",
        "n" * 251 + ".jpg",
        "folder.jpg/inside.jpg",
        "folder/same.jpg",
        NOT_UTF8,
    ):
        nasty.add_good(name, encode(picture(), "PNG") if name.endswith("png") else jpeg())


def _add_damaged(nasty: NastyFolder) -> None:
    code = ImageErrorCode
    whole, png = jpeg(), encode(picture(), "PNG")
    nasty.add_bad("truncated.jpg", whole[: len(whole) // 2], code.TRUNCATED)
    nasty.add_bad("cut.png", png[: len(png) // 2], code.TRUNCATED)
    nasty.add_bad("flipped.png", flip_bits(png), code.CORRUPT)
    nasty.add_bad("text.png", b"this is not an image\n", code.NOT_AN_IMAGE)
    nasty.add_bad("page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", code.NOT_AN_IMAGE)
    nasty.add_bad("empty.jpg", b"", code.EMPTY)
    nasty.add_bad("zeros.jpg", bytes(4096), code.NOT_AN_IMAGE)
    float_pixels = picture().mean(axis=2).astype(np.float32) / 255
    nasty.add_bad("float.tif", encode(float_pixels, "TIFF"), code.UNSUPPORTED_PIXELS)
    nasty.add_bad("phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), code.UNSUPPORTED_FORMAT)
    nasty.add_bad("drawing.png", b"<?xml version='1.0'?><svg xmlns='x'></svg>", code.UNSUPPORTED_FORMAT)
    nasty.add_bad("bomb.png", bomb(), code.TOO_LARGE)


def _add_special_files(nasty: NastyFolder) -> None:
    root = nasty.root
    os.mkfifo(root / "pipe.jpg")
    nasty.bad["pipe.jpg"] = ImageErrorCode.NOT_A_FILE
    (root / "dead_link.jpg").symlink_to("nowhere.jpg")
    nasty.bad["dead_link.jpg"] = ImageErrorCode.VANISHED
    (root / "own_tail.jpg").symlink_to("own_tail.jpg")
    nasty.bad["own_tail.jpg"] = ImageErrorCode.NOT_A_FILE
    # two links in circles make glob("**", recursive=True) run for ever
    (root / "folder" / "up").symlink_to("..")
    (root / "folder" / "here").symlink_to(".")
    for name in (".hidden.jpg", "._fork.jpg", ".hidden/inside.jpg", "notes.txt", "no_ending"):
        nasty._write(name, jpeg())
        nasty.unlisted.append(name)
