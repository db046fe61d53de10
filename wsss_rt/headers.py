"""Size of an image from its header alone."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image

from wsss_rt.errors import ImageError, ImageErrorCode
from wsss_rt.io.decode import decode_image, read_bytes
from wsss_rt.io.sniff import SUPPORTED_FORMATS


def header_size(path: Path, *, max_pixels: int) -> tuple[int, int]:
    """(width, height) in pixels of the stored raster; damage past the header is not noticed.

    Raises:
        ImageError: the file cannot be read, is no image that we read, or is larger than ``max_pixels``.
    """
    data = read_bytes(path)
    try:
        with Image.open(BytesIO(data), formats=list(SUPPORTED_FORMATS)) as image:
            size = image.size
    except (Image.UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        # the decoder knows the class of error
        return decode_image(data, max_pixels=max_pixels).stored_size
    if size[0] * size[1] > max_pixels:
        raise ImageError(ImageErrorCode.TOO_LARGE, f"{path} has {size[0]} x {size[1]} pixels")
    return size
