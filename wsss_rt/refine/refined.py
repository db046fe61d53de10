"""What a refiner gives back."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Refined(NamedTuple):
    """Refined scores of one image.

    Attributes:
        scores: (C' + 1, H, W) float32 in 0..1; plane 0 is background.
        sure_background: (H, W) bool, where background is certain; background elsewhere is to be ignored.
            None where the scores alone decide.
    """

    scores: NDArray[np.float32]
    sure_background: NDArray[np.bool_] | None = None
