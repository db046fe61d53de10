"""How well scores rank the classes of images: average precision."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsss_rt.metrics.confusion import nanmean


def average_precision(
    scores: ArrayLike, targets: ArrayLike, *, per: Literal["class", "image"] = "class"
) -> NDArray[np.float64]:
    """Average precision: the sum over recall steps of the precision there, equal scores taken as one step.

    Args:
        scores: (N, C) logits or probabilities; only their order counts.
        targets: (N, C) of 0 and 1.
        per: ``class`` ranks the images of each class; ``image`` ranks the classes of each image, whose mean
            is what MCTformer's training loop prints as mAP.

    Returns:
        (C,) or (N,) float64 of 0..1, nan where nothing is positive; ``nanmean`` of it is the mAP.

    Raises:
        ValueError: shapes differ, or a score is not finite.
    """
    ranked, truth = np.asarray(scores, np.float64), np.asarray(targets).astype(bool)
    if ranked.ndim != 2 or ranked.shape != truth.shape:
        raise ValueError(f"scores {ranked.shape} and targets {truth.shape} must be one (N, C) shape")
    if not np.isfinite(ranked).all():
        raise ValueError("scores hold values that are not finite")
    if per == "class":
        ranked, truth = ranked.T, truth.T
    rows = [_average_precision(row, wanted) for row, wanted in zip(ranked, truth, strict=True)]
    return np.array(rows, np.float64)


def mean_average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """Mean of :func:`average_precision` over the classes that occur, 0..1; nan when none does."""
    return nanmean(average_precision(scores, targets))


def _average_precision(scores: NDArray[np.float64], wanted: NDArray[np.bool_]) -> float:
    positives = int(wanted.sum())
    if not positives:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(wanted[order])
    # the last position of each run of equal scores: the order inside a run means nothing
    steps = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision = found[steps] / (steps + 1)
    return float((np.diff(found[steps], prepend=0) / positives * precision).sum())
