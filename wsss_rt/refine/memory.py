"""How much memory a CRF takes, so that an image that needs too much is refused before it takes it."""

from __future__ import annotations

from wsss_rt.errors import ImageError, ImageErrorCode

# values of a vertex come in groups of this many
LANES = 4
GIGABYTE = 1e9
# gigabytes that one image's CRF may take on the host, where nobody says; a GPU's memory is its own limit
DEFAULT_MEMORY = 4.0
# corners and weights of both kernels, and the image
_PIXEL_BYTES = (3 + 6) * 8 + 3
# neighbours along six axes, name, and its share of the table of names
_VERTEX_BYTES = 6 * 8 + 8 + 48


def crf_bytes(height: int, width: int, classes: int, *, vertices: int = 0) -> int:
    """Bytes that the dense CRF of an image takes at its peak, its input and output among them.

    Args:
        height, width: of the image, pixels.
        classes: background and present classes.
        vertices: of both lattices, those that bands share counted in each; 0 where they are not known yet,
            and then the figure is a lower bound. Photographs have about one for ten pixels or fewer.
    """
    lanes = -(-classes // LANES) * LANES
    per_pixel = _PIXEL_BYTES + 4 * lanes + 8 * classes
    # values and sums of a band, and the two sides of a blur
    per_vertex = _VERTEX_BYTES + 4 * 4 * lanes
    return height * width * per_pixel + vertices * per_vertex


def refuse_beyond(limit: float | None, size: tuple[int, int], classes: int, *, vertices: int) -> None:
    """Refuse an image whose CRF takes more than ``limit`` bytes; None refuses none.

    Raises:
        ImageError: ``out_of_memory``; it says how much the image needs.
    """
    refuse(crf_bytes(*size, classes, vertices=vertices), limit=limit, size=size, classes=classes)


def refuse(needed: int, *, limit: float | None, size: tuple[int, int], classes: int) -> None:
    """Refuse an image (H, W) whose CRF needs more than ``limit`` bytes; None refuses none.

    Raises:
        ImageError: ``out_of_memory``; it says how much the image needs.
    """
    if limit is None or needed <= limit:
        return
    raise ImageError(
        ImageErrorCode.OUT_OF_MEMORY,
        f"the CRF of {size[1]}x{size[0]} px and {classes} classes needs at least {needed / GIGABYTE:.1f} GB, "
        f"more than its limit of {limit / GIGABYTE:.1f} GB",
        fix="raise --crf-memory, or label smaller images",
    )
