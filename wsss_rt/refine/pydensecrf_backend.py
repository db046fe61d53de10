"""The package pydensecrf behind our signature, to compare with; the extra ``crf-reference`` installs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wsss_rt.errors import MissingExtraError
from wsss_rt.refine.checks import check_input
from wsss_rt.refine.params import LEAST_PROBABILITY, CrfParams

if TYPE_CHECKING:
    from numpy.typing import NDArray


def dense_crf(
    image_u8: NDArray[np.uint8], probabilities: NDArray[np.float32], params: CrfParams | None = None
) -> NDArray[np.float32]:
    """As :func:`wsss_rt.refine.dense_crf.dense_crf`, computed by pydensecrf in one thread.

    Raises:
        MissingExtraError: it is not installed.
        ImageError, ValueError: as there.
    """
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError as error:
        raise MissingExtraError("this CRF", extra="crf-reference", package="pydensecrf2") from error
    chosen = params or CrfParams()
    check_input(image_u8, probabilities)
    classes, height, width = probabilities.shape
    if classes == 1:
        return np.ones(probabilities.shape, np.float32)
    crf = DenseCRF2D(width, height, classes)
    clipped = np.clip(probabilities, LEAST_PROBABILITY, 1, dtype=np.float32)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(clipped).reshape(classes, -1)))
    crf.addPairwiseGaussian(sxy=chosen.spatial_sxy, compat=chosen.spatial_compat)
    crf.addPairwiseBilateral(
        sxy=chosen.bilateral_sxy,
        srgb=chosen.bilateral_srgb,
        rgbim=np.array(image_u8, order="C"),
        compat=chosen.bilateral_compat,
    )
    marginals = np.asarray(crf.inference(chosen.iterations), np.float32)
    return marginals.reshape(probabilities.shape)
