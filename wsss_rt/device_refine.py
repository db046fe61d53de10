"""``--refine`` on a device: the refiners that have a kernel there, and the others by way of the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_rt.errors import ImageError, ImageErrorCode
from wsss_rt.refine.chain import ChainRefiner
from wsss_rt.refine.crf import CrfRefiner
from wsss_rt.refine.memory import refuse
from wsss_rt.refine.walk import WalkRefiner

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.kernels.localize import DeviceMaps
    from wsss_rt.refine import Refiner

# (image on the host, scores on the device) to scores and sure background, or None, on the device
DeviceRefiner = Callable[["NDArray[np.uint8]", Any], tuple[Any, Any]]


def device_refiner(refiner: Refiner, maps: DeviceMaps) -> DeviceRefiner:
    """What a refiner does, on the device of the maps.

    Args:
        refiner: as ``--refine`` opened it; its parameters count, and the walk's affinity model is run by it.
        maps: brings arrays there and back.

    Raises:
        ImageError: from the refiner, when it cannot take an image.
    """
    from wsss_rt.kernels.refiners import finite

    chain = [_step(step, maps) for step in _steps(refiner)]

    def refine(image: NDArray[np.uint8], scores: Any) -> tuple[Any, Any]:
        if not finite(scores):
            raise ImageError(
                ImageErrorCode.NONFINITE_OUTPUT,
                "the scores to refine hold NaN or infinity for this image",
                fix="try --precision float32 or another --backend",
            )
        sure = None
        for step in chain:
            scores, certain = step(image, scores)
            # what one of them says stands until a later one says otherwise
            sure = sure if certain is None else certain
        return scores, sure

    return refine


def refiner_operators(refiner: Refiner | None) -> tuple[str, ...]:
    """Operators of ``wsss_rt.kernels`` that :func:`device_refiner` runs for a refiner."""
    found = []
    for step in () if refiner is None else _steps(refiner):
        if isinstance(step, CrfRefiner) and step.backend == "numba":
            found.append("dense_crf")
        elif isinstance(step, WalkRefiner):
            found.append("random_walk")
    return tuple(found)


def _steps(refiner: Refiner) -> tuple[Refiner, ...]:
    return refiner.refiners if isinstance(refiner, ChainRefiner) else (refiner,)


def _step(refiner: Refiner, maps: DeviceMaps) -> DeviceRefiner:
    if isinstance(refiner, CrfRefiner) and refiner.backend == "numba":
        return _crf(refiner, maps)
    if isinstance(refiner, WalkRefiner):
        return _walk(refiner, maps)
    return _by_host(refiner, maps)


def _crf(refiner: CrfRefiner, maps: DeviceMaps) -> DeviceRefiner:
    from wsss_rt.kernels.refiners import crf

    params = asdict(refiner.params)
    alphas = [params.pop("alpha")]
    if (high := params.pop("high_alpha")) is not None:
        alphas.append(high)

    def refine(image: NDArray[np.uint8], scores: Any) -> tuple[Any, Any]:
        admit = None
        if refiner.memory is not None:
            admit = partial(refuse, limit=refiner.memory, size=image.shape[:2], classes=len(scores))
        with maps.streams.work():
            return crf(maps.streams.upload(image), scores, alphas, params, admit=admit)

    return refine


def _walk(refiner: WalkRefiner, maps: DeviceMaps) -> DeviceRefiner:
    from wsss_rt.kernels.refiners import walk

    params = refiner.params

    def refine(image: NDArray[np.uint8], scores: Any) -> tuple[Any, Any]:
        affinity, seen = refiner.affinity_of(image)
        if seen != image.shape[:2]:
            # means of areas, which is how the host shrinks scores, are not torch's
            walked = refiner.walk(maps.to_host(scores), affinity, seen)
            return maps.to_device(walked), None
        with maps.streams.work():
            found = walk(
                scores, maps.streams.upload(affinity), params.alpha, beta=params.beta, steps=params.steps,
                radius=params.radius,
            )  # fmt: skip
        return found, None

    return refine


def _by_host(refiner: Refiner, maps: DeviceMaps) -> DeviceRefiner:
    def refine(image: NDArray[np.uint8], scores: Any) -> tuple[Any, Any]:
        found = refiner(image, maps.to_host(scores))
        sure = found.sure_background
        return maps.to_device(found.scores), None if sure is None else maps.to_device(sure)

    return refine
