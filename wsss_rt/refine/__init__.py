"""Refiners: each takes an image and its scores and returns better scores; a registry by name.

A refiner stands in its own module of this folder and is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from wsss_rt.errors import UsageError, nearest
from wsss_rt.refine.crf import CrfRefiner
from wsss_rt.refine.memory import DEFAULT_MEMORY
from wsss_rt.refine.params import CrfParams, crf_params
from wsss_rt.refine.refined import Refined

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Refiner(Protocol):
    """Sharpens the scores of one image, e.g. along its edges. Called from several threads at once."""

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> Refined:
        """Refine.

        Args:
            image: (H, W, 3) uint8 RGB, upright.
            scores: (C' + 1, H, W) float32 in 0..1; plane 0 is background, the others the present classes.

        Returns:
            Scores of the same shape, meaning and range, and what else they say.
        """
        ...

    def warm_up(self, announce: Callable[[str], None]) -> None:
        """Do now what would otherwise hold up the first image; ``announce`` is told what takes long."""
        ...


# name -> what opens the refiner; `none` opens nothing, so that its planes are never built
REFINERS: dict[str, Callable[[CrfParams, str, float], Refiner | None]] = {
    "none": lambda params, backend, memory: None,
    "crf": lambda params, backend, memory: CrfRefiner(params, backend=backend, memory=memory),
}


def open_refiner(
    name: str, *, crf: CrfParams | None = None, backend: str = "numba", memory: float = DEFAULT_MEMORY
) -> Refiner | None:
    """The refiner of this name; None for ``none``.

    Args:
        name: a key of :data:`REFINERS`.
        crf: parameters of ``crf``; None takes the default preset.
        backend: of ``crf``.
        memory: gigabytes that one image may take in ``crf``.

    Raises:
        UsageError: there is no such refiner or backend.
        MissingExtraError: the backend's package is not installed.
    """
    if name not in REFINERS:
        raise UsageError(f"no refiner named {name!r}", fix=nearest(name, REFINERS))
    return REFINERS[name](crf or crf_params(), backend, memory)
