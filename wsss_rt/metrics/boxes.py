"""Boxes from localization maps, and how well they fit: MaxBoxAccV2, GT-known, Top-1 and Top-5 localization.

For data of one class per image with boxes and no masks (CUB, ILSVRC). A box is (left, top, right, bottom) in
pixels whose right and bottom lie behind the last pixel: its sides are right - left and bottom - top, and
true boxes may have fractions. The boxes of a map are those of its connected regions (8 neighbours), holes
left alone. What older evaluations do otherwise stands in :mod:`wsss_rt.metrics.token_refinement`.

Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020 (MaxBoxAcc),
and its journal version (MaxBoxAccV2: all boxes, three IoU limits).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsss_rt.metrics.regions import Runs, connect, level_runs

# shares of a map's maximum: 0, 0.001 .. 0.999
BOX_THRESHOLDS = np.arange(0, 1, 0.001)
IOU_LIMITS = (0.3, 0.5, 0.7)


def box_iou(boxes: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union (M, K), 0..1, of boxes (M, 4) and (K, 4); 0 for boxes without area."""
    ours = np.asarray(boxes, np.float64).reshape(-1, 1, 4)
    theirs = np.asarray(truth, np.float64).reshape(1, -1, 4)
    sides = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2])
    shared = np.maximum(sides, 0).prod(axis=-1)
    areas = [np.maximum(box[..., 2:] - box[..., :2], 0).prod(axis=-1) for box in (ours, theirs)]
    union = areas[0] + areas[1] - shared
    ratio: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


@dataclass(frozen=True)
class Overlaps:
    """How well the boxes of one map fit the true boxes of its image, per threshold.

    Attributes:
        best: (T,) float64 of 0..1, highest IoU of any region's box with any true box; 0 without a region.
        largest: (T,) the same of the largest region alone: most pixels, among equals the first in reading
            order.
    """

    best: NDArray[np.float64]
    largest: NDArray[np.float64]


def box_overlaps(
    pixels: NDArray[np.floating], truth: ArrayLike, thresholds: ArrayLike = BOX_THRESHOLDS
) -> Overlaps:
    """Cut a map at every threshold and compare its boxes with the true ones.

    Args:
        pixels: (H, W) map stretched to 0..1; a pixel is set where it is above the threshold. No detour over
            8 bits.
        truth: (K, 4) true boxes in pixels of the map.
        thresholds: (T,) in any order.

    Raises:
        ValueError: no true box, or values that are not finite.
    """
    true = np.asarray(truth, np.float64).reshape(-1, 4)
    if not len(true) or not np.isfinite(true).all():
        raise ValueError("an image needs at least one true box of finite numbers")
    if not np.isfinite(pixels).all():
        raise ValueError("the map holds values that are not finite")

    def judge(runs: Runs) -> NDArray[np.float64]:
        regions = connect(runs)
        iou = box_iou(regions.boxes, true).max(axis=1, initial=0)
        result = np.zeros((2, runs.shape[0]))
        np.maximum.at(result[0], regions.masks, iou)
        order = np.lexsort((-np.arange(len(iou)), regions.pixels, regions.masks))
        chosen = order[last_of_each(regions.masks[order])]
        result[1, regions.masks[chosen]] = iou[chosen]
        return result

    best, largest = over_thresholds(pixels, thresholds, judge)
    return Overlaps(best, largest)


def over_thresholds(
    values: NDArray[np.generic], thresholds: ArrayLike, judge: Callable[[Runs], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Judge the masks ``values > threshold``, each different mask once.

    Args:
        values: (H, W) numbers.
        thresholds: (T,) in any order.
        judge: takes the runs of F masks, gives (J, F) float64.

    Returns:
        (J, T) float64.
    """
    cuts, position = np.unique(np.asarray(thresholds), return_inverse=True)
    passed = np.searchsorted(cuts, values.ravel())
    present, ranks = np.unique(passed, return_inverse=True)
    # mask j holds the pixels of rank j and more: the first all of them, the last none
    levels = ranks.reshape(values.shape) + 1
    parts = [judge(runs) for _, runs in level_runs(levels, len(present) + 1)]
    mask_of_cut = np.searchsorted(present, np.arange(len(cuts)), side="right")
    result: NDArray[np.float64] = np.concatenate(parts, axis=1)[:, mask_of_cut[position.ravel()]]
    return result


def last_of_each(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the last member of every group, groups being neighbours in (N,)."""
    return np.flatnonzero(np.append(np.diff(groups) != 0, True)[: len(groups)])


class MaxBoxAccV2:
    """Share of images with a good box at the best threshold, one threshold for all images and each IoU limit.

    An image is right where the box of any region overlaps any true box by the limit or more.

    Args:
        thresholds: (T,) shares of the maximum to try.

    Attributes:
        correct: (3, T) int64 images that are right, per limit of :data:`IOU_LIMITS` and threshold.
        images: number of images.
    """

    def __init__(self, thresholds: ArrayLike = BOX_THRESHOLDS) -> None:
        self.thresholds: NDArray[np.float64] = np.asarray(thresholds, np.float64)
        self.correct = np.zeros((len(IOU_LIMITS), len(self.thresholds)), np.int64)
        self.images = 0

    def update(self, pixels: NDArray[np.floating], truth: ArrayLike) -> None:
        """Add one image; see :func:`box_overlaps`."""
        self.add(box_overlaps(pixels, truth, self.thresholds))

    def add(self, overlaps: Overlaps) -> None:
        """Add one image whose overlaps at these thresholds are known."""
        self.correct += overlaps.best >= np.array(IOU_LIMITS)[:, None]
        self.images += 1

    def accuracies(self) -> NDArray[np.float64]:
        """(3,) of 0..1: each limit's accuracy at its best threshold; nan without images."""
        return _shares(self.correct.max(axis=1), self.images)

    def best_thresholds(self) -> NDArray[np.float64]:
        """(3,) the threshold of each accuracy, the lowest where several are equally good."""
        chosen: NDArray[np.float64] = self.thresholds[self.correct.argmax(axis=1)]
        return chosen

    def value(self) -> float:
        """MaxBoxAccV2: the mean of :meth:`accuracies`."""
        return float(self.accuracies().mean())


@dataclass(frozen=True)
class LocalizationAccuracy:
    """Shares of images, 0..1; nan without images.

    Attributes:
        threshold: the share of a map's maximum at which boxes were taken.
        top_1_class, top_5_class: the true class is the strongest, or among the five strongest.
        top_1: ``top_1_class``, and the box of the true class's map overlaps a true box by half or more.
        top_5: the same with ``top_5_class``.
        gt_known: the box fits, whatever the scores.
    """

    threshold: float
    top_1_class: float
    top_5_class: float
    top_1: float
    top_5: float
    gt_known: float


class TopLocalization:
    """Top-1 and Top-5 localization and GT-known, by the box of the largest region.

    Args:
        thresholds: (T,) shares of the maximum to try; a single one judges at that.
    """

    def __init__(self, thresholds: ArrayLike = BOX_THRESHOLDS) -> None:
        self.thresholds: NDArray[np.float64] = np.asarray(thresholds, np.float64)
        # rows: among the five strongest, the strongest; GT-known counts all images
        self._located = np.zeros((3, len(self.thresholds)), np.int64)
        self._classified = np.zeros(2, np.int64)
        self.images = 0

    def update(
        self, pixels: NDArray[np.floating], truth: ArrayLike, *, scores: NDArray[np.floating], label: int
    ) -> None:
        """Add one image.

        Args:
            pixels: (H, W) map of the true class; see :func:`box_overlaps`.
            truth: (K, 4) true boxes in pixels of the map.
            scores: (C,) logits or probabilities.
            label: index of the true class.
        """
        self.add(box_overlaps(pixels, truth, self.thresholds), class_rank(scores, label))

    def add(self, overlaps: Overlaps, rank: int) -> None:
        """Add one image whose overlaps at these thresholds and whose :func:`class_rank` are known."""
        named = np.array([rank < 1, rank < 5])
        self._classified += named
        self._located += np.append(named, True)[:, None] & (overlaps.largest >= 0.5)
        self.images += 1

    def best(self) -> LocalizationAccuracy:
        """The accuracies at the threshold with the highest GT-known, the lowest such."""
        index = int(self._located[2].argmax())
        shares = [*_shares(self._classified, self.images), *_shares(self._located[:, index], self.images)]
        return LocalizationAccuracy(float(self.thresholds[index]), *(float(share) for share in shares))


def class_rank(scores: NDArray[np.floating], label: int) -> int:
    """How many classes come before one in the order of the scores (C,); of equals the first comes first."""
    return int((scores > scores[label]).sum() + (scores[:label] == scores[label]).sum())


def _shares(counts: NDArray[np.int64], images: int) -> NDArray[np.float64]:
    return counts / images if images else np.full(counts.shape, np.nan)
