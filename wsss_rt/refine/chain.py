"""``--refine A+B``: refiners one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wsss_rt.refine.refined import Refined

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.refine import Refiner


class ChainRefiner:
    """Each refiner sharpens the scores that the one before it gives.

    Args:
        refiners: in the order in which they run.

    Attributes:
        refiners: the same.
    """

    def __init__(self, refiners: Sequence[Refiner]) -> None:
        self.refiners = tuple(refiners)

    def warm_up(self, announce: Callable[[str], None]) -> None:
        """Warm up each."""
        for refiner in self.refiners:
            refiner.warm_up(announce)

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> Refined:
        """Refine.

        Args:
            image: (H, W, 3) uint8 RGB, upright.
            scores: (C' + 1, H, W) float32 in 0..1; plane 0 is background.

        Returns:
            Scores of the last refiner. What one of them says of sure background stands until a later one
            says otherwise.

        Raises:
            ImageError: one of them cannot refine this image.
        """
        refined = Refined(scores)
        for refiner in self.refiners:
            scores, sure = refiner(image, refined.scores)
            refined = Refined(scores, refined.sure_background if sure is None else sure)
        return refined
