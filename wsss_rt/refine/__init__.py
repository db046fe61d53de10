"""Refiners: each takes an image and its scores and returns better scores; a registry by name.

A refiner stands in its own module of this folder and is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from wsss_rt.errors import UsageError, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.options import LabelOptions
    from wsss_rt.refine.refined import Refined


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


def _open_crf(options: LabelOptions) -> Refiner:
    from wsss_rt.refine.crf import CrfRefiner

    return CrfRefiner(options.crf, backend=options.crf_backend, memory=options.crf_memory)


def _open_walk(options: LabelOptions) -> Refiner:
    from wsss_rt.refine.walk import WalkRefiner

    return WalkRefiner(
        options.affinity,
        options.walk,
        backend=options.backend,
        device=options.device,
        # an affinity net decides nothing that a second look could tell from a tie
        precision="float32" if options.precision == "mixed" else options.precision,
        threads=options.threads,
        gate=not options.skip_parity,
    )


# name -> what opens the refiner; `none` opens nothing, so that its planes are never built
REFINERS: dict[str, Callable[[LabelOptions], Refiner | None]] = {
    "none": lambda options: None,
    "crf": _open_crf,
    "walk": _open_walk,
}


def refiner_names(refine: str) -> tuple[str, ...]:
    """The refiners that a setting names, in the order in which they run: ``crf+walk`` is both.

    Raises:
        UsageError: there is no such refiner, one stands there twice, or ``none`` beside another.
    """
    names = tuple(name.strip() for name in refine.split("+"))
    for name in names:
        if name not in REFINERS:
            raise UsageError(f"no refiner named {name!r}", fix=nearest(name, REFINERS))
    if len(names) > 1 and (len(set(names)) < len(names) or "none" in names):
        raise UsageError(
            f"refine {refine!r} makes no sense", fix="name each refiner once, for example crf+walk"
        )
    return names


def open_refiner(options: LabelOptions) -> Refiner | None:
    """The refiner that ``options.refine`` names, with its settings in the options; None for ``none``.

    Raises:
        UsageError: there is no such refiner, or it lacks what it needs.
        MissingExtraError: a package that it needs is not installed.
        WsssError: its model cannot be used.
    """
    opened = [REFINERS[name](options) for name in refiner_names(options.refine)]
    refiners = [refiner for refiner in opened if refiner is not None]
    if len(refiners) < 2:
        return refiners[0] if refiners else None
    from wsss_rt.refine.chain import ChainRefiner

    return ChainRefiner(refiners)
