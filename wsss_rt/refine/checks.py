"""What every refiner refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_rt.errors import ImageError, ImageErrorCode

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_input(image: NDArray[np.uint8], probabilities: NDArray[Any]) -> None:
    """Refuse arrays that do not fit together, and numbers that are none.

    Args:
        image: (H, W, 3) uint8.
        probabilities: (C, H, W) floating point.

    Raises:
        ValueError: other shapes or types, a mistake of the caller.
        ImageError: ``nonfinite_output``: NaN or infinity.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected an image (H, W, 3) uint8 with pixels, got {image.dtype} {image.shape}")
    if (
        probabilities.ndim != 3
        or not np.issubdtype(probabilities.dtype, np.floating)
        or len(probabilities) < 1
        or probabilities.shape[1:] != image.shape[:2]
    ):
        raise ValueError(
            f"expected probabilities (C, {image.shape[0]}, {image.shape[1]}) of floating point, "
            f"got {probabilities.dtype} {probabilities.shape}"
        )
    if not np.isfinite(probabilities).all():
        raise ImageError(
            ImageErrorCode.NONFINITE_OUTPUT,
            "the scores to refine hold NaN or infinity for this image",
            fix="try --precision float32 or another --backend",
        )
