"""What a file is, by its first bytes: the format, the size in its header, and a hint where it is no image."""

from __future__ import annotations

import struct
import zlib
from typing import Literal

# only these are ever opened: EPS would start Ghostscript, and FITS had a decompression bomb of its own
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    *((b"P%d" % digit, "PPM") for digit in range(1, 7)),
    (b"Pf", "PPM"),
)
SUPPORTED_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

_CONVERT = "convert it to PNG or JPEG first"
_ISO_BRANDS = {
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"crx ": "Canon raw",
}
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"SIMPLE  =", "FITS"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"qoif", "QOI"),
    (b"DDS ", "DirectDraw surface"),
    (b"\x93NUMPY", "NumPy array"),
)
_OTHER: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "it looks like a ZIP archive"),
    (b"\x1f\x8b", "it looks like a gzip archive"),
    (b"Rar!", "it looks like a RAR archive"),
    (b"7z\xbc\xaf", "it looks like a 7z archive"),
    (b"\x7fELF", "it looks like a program"),
    (b"\x1aE\xdf\xa3", "it looks like a video"),
    (b"\x80\x02", "it looks like a Python pickle"),
)


_TIFF_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


def image_format(data: bytes) -> str | None:
    """Name of the supported format that ``data`` begins with, or None."""
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def foreign_image(data: bytes) -> tuple[str, str] | None:
    """Name of an image format that isn't read here, and what to do about it; None for anything else."""
    if data[4:8] == b"ftyp":
        brands = [data[8:12], *(data[at : at + 4] for at in range(16, min(len(data), 64), 4))]
        for brand in brands:
            if brand in _ISO_BRANDS:
                return _ISO_BRANDS[brand], _CONVERT
        return None
    for signature, name in _FOREIGN:
        if data.startswith(signature):
            return name, _CONVERT
    if b"<svg" in _text_head(data):
        return "SVG", "it is a drawing without pixels; render it to PNG first"
    return None


def describe_other(data: bytes) -> tuple[str, str]:
    """Why ``data`` is no image and what to do, as far as its first bytes tell."""
    if data[4:8] == b"ftyp":
        return "it looks like a video", "extract its frames first"
    for signature, why in _OTHER:
        if data.startswith(signature):
            return why, ""
    head = _text_head(data)
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself", "run: git lfs pull"
    if b"<html" in head or b"<!doctype html" in head:
        return "it looks like an HTML page", "a download probably saved an error page; fetch it again"
    if head.startswith((b"<?xml", b"<")):
        return "it looks like XML", ""
    if head.startswith((b"{", b"[")):
        return "it looks like JSON", ""
    if not data.strip(b"\0"):
        return "it holds nothing but zero bytes", "an interrupted copy leaves such files; copy it again"
    sample = data[:512]
    if all(byte in b"\t\r\n\f\x1b" or byte >= 32 for byte in sample):
        try:
            sample.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.start < len(sample) - 3:
                return "its first bytes belong to no image format", ""
        return "it looks like text", ""
    return "its first bytes belong to no image format", ""


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Canvas (width, height) of a WebP file.

    Pillow's decoder allocates the canvas while it opens the file, so that asking Pillow would be too late.
    """
    chunk = data[12:16]
    if chunk == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def png_damage(data: bytes) -> str:
    """Which chunk of a PNG has a wrong checksum, or an empty string.

    Pillow skips the checksums of the pixels, so that a flipped bit would pass as a picture.
    """
    view, at, kind = memoryview(data), 8, b""
    while at + 12 <= len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        end = at + 12 + length
        # a small first letter marks a chunk that is not about the pixels
        if end <= len(data) and kind[:1].isupper():
            (expected,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(view[at + 4 : end - 4]) != expected:
                return kind.decode("ascii", "backslashreplace")
        if kind == b"IEND":
            return ""
        at = end
    # the chunks do not lead to the end, though there is one: a length is wrong
    return "" if end_missing(data, "PNG") else kind.decode("ascii", "backslashreplace")


def end_missing(data: bytes, name: str) -> bool:
    """Whether the file stops before the place where its format says that it ends.

    Args:
        data: the whole file.
        name: its format, as :func:`image_format` gives it.
    """
    if name == "JPEG":
        # a thumbnail inside the header has an end marker of its own
        return data.rfind(b"\xff\xd9") < max(data.rfind(b"\xff\xda"), 2)
    if name == "PNG":
        return b"IEND\xaeB`\x82" not in data
    if name == "GIF":
        return not data.rstrip(b"\0").endswith(b";")
    if name == "WEBP":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    if name == "BMP":
        return len(data) < int.from_bytes(data[2:6], "little")
    if name == "TIFF":
        return _tiff_end_missing(data)
    return False


def _tiff_end_missing(data: bytes) -> bool:
    """Follow the first directory of a classic TIFF to the last byte of its strips or tiles."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    if 43 in data[2:4]:
        return False
    start = number(4, 4)
    count = number(start, 2)
    if len(data) < start + 2 + 12 * count:
        return True
    extents: dict[int, list[int]] = {}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length = number(entry, 2), number(entry + 2, 2), number(entry + 4, 4)
        size = _TIFF_TYPE_SIZES.get(kind, 0)
        place = entry + 8 if size * length <= 4 else number(entry + 8, 4)
        if place + size * length > len(data):
            return True
        if tag in (273, 279, 324, 325) and kind in (3, 4):
            extents[tag] = [number(place + size * index, size) for index in range(length)]
    for offsets, sizes in ((273, 279), (324, 325)):
        pairs = zip(extents.get(offsets, ()), extents.get(sizes, ()), strict=False)
        if any(offset + size > len(data) for offset, size in pairs):
            return True
    return False


def _text_head(data: bytes) -> bytes:
    head = data[:1024]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        head = head.decode("utf-16", "ignore").encode()
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
