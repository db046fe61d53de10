"""Refiners on a device: the kernels of the CRF and the walk, with what stands around them on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# pixels of a cell of the walk; the same as ``wsss_rt.refine.walk_params.STRIDE``
STRIDE = 8


def finite(scores: Tensor) -> bool:
    """Whether all scores are numbers; waits for them."""
    return bool(torch.isfinite(scores).all())


def crf(
    image: Tensor,
    scores: Tensor,
    alphas: Sequence[float | None],
    params: Mapping[str, Any],
    *,
    admit: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Marginals of a dense CRF, as ``wsss_rt.refine.crf.CrfRefiner`` gives them.

    Args:
        image: (H, W, 3) uint8 RGB.
        scores: (C' + 1, H, W) float32 in 0..1; plane 0 is background.
        alphas: one, or a low and a high one, of the background (1 - best class)^alpha; None keeps plane 0.
        params: what else ``dense_crf_each`` takes, but ``admit``.
        admit: as there.

    Returns:
        Marginals at the first alpha, and where background wins at the second, (H, W) bool, or None.
    """
    from wsss_rt.kernels.dense_crf import dense_crf_each

    several = [with_background(scores, alpha) for alpha in alphas]
    found = dense_crf_each([image] * len(several), several, **params, admit=admit)
    return found[0], found[1].argmax(dim=0) == 0 if len(found) > 1 else None


def walk(scores: Tensor, affinity: Tensor, alpha: float | None, **params: Any) -> Tensor:
    """Scores after a random walk, as ``wsss_rt.refine.random_walk.random_walk`` gives them.

    Args:
        scores: (C' + 1, H, W) float32 in 0..1; plane 0 is background.
        affinity: (K, rows, columns) float32 over the cells of the image, padded at its right and bottom.
        alpha: as in :func:`crf`.
        **params: ``beta``, ``steps`` and ``radius``.

    Returns:
        (C' + 1, H, W) float32, bilinear between cells.
    """
    from wsss_rt.kernels.random_walk import random_walk

    height, width = scores.shape[1:]
    below, right = -height % STRIDE, -width % STRIDE
    # what lies outside the image counts as 0 in the mean of its cell
    padded = functional.pad(with_background(scores, alpha), (0, right, 0, below))
    cells = functional.avg_pool2d(padded, STRIDE)
    walked = random_walk(cells[None], affinity[None], **params)
    size = (height + below, width + right)
    grown = functional.interpolate(walked, size, mode="bilinear", align_corners=False)[0]
    return grown[:, :height, :width]


def with_background(scores: Tensor, alpha: float | None) -> Tensor:
    """The scores with the background (1 - best class)^alpha; as they are where alpha is None."""
    if alpha is None or len(scores) == 1:
        return scores
    background = (1 - scores[1:].amax(dim=0)).clamp(0, 1) ** alpha
    return torch.cat((background[None], scores[1:]))
