"""Segmentation and classification metrics, in numpy alone.

Counts are int64 throughout: a confusion matrix over COCO holds more pixels than 32 bits count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsss_rt.classes import IGNORE

# what a class without a single pixel in truth and prediction contributes: nothing, or a zero as in the
# evaluation script that came with MCTformer
Absent = Literal["nan", "zero"]
OFFICIAL_THRESHOLDS = np.arange(60) / 100.0
# keeps the official quotient defined where a class is absent
_OFFICIAL_EPSILON = 1e-10


class ConfusionMatrix:
    """Pixel counts by true and predicted value.

    Args:
        num_classes: number of mask values, background included; values are 0..num_classes-1.

    Attributes:
        counts: (num_classes, num_classes) int64, rows truth, columns prediction.
        ignored: (num_classes,) int64, pixels of each true class whose prediction was 255.
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes must be 1..{IGNORE}, not {num_classes}")
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes), np.int64)
        self.ignored = np.zeros(num_classes, np.int64)

    def update(self, prediction: NDArray[np.integer], truth: NDArray[np.integer]) -> None:
        """Add the pixels of one image, or of many.

        Args:
            prediction: integers 0..num_classes-1 or 255, any shape.
            truth: the same shape; pixels of 255 are left out.

        Raises:
            ValueError: shapes differ, or a value is outside the range.
        """
        self.add_joint(joint_histogram(prediction, truth))

    def add_joint(self, joint: NDArray[np.int64]) -> None:
        """Add a (256, 256) histogram of (truth, prediction) as :func:`joint_histogram` gives it.

        Raises:
            ValueError: a value is outside the range.
        """
        size = self.num_classes
        outside = joint[size:IGNORE].any() or joint[:IGNORE, size:IGNORE].any()
        if outside:
            raise ValueError(f"a mask holds values outside 0..{size - 1} and {IGNORE}")
        self.counts += joint[:size, :size]
        self.ignored += joint[:size, IGNORE]

    def merge(self, other: ConfusionMatrix) -> None:
        """Add another matrix of the same size."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"{other.num_classes} classes do not fit {self.num_classes}")
        self.counts += other.counts
        self.ignored += other.ignored

    def truth(self, *, ignore_predicted: bool = False) -> NDArray[np.int64]:
        """(num_classes,) pixels of each class in the truth."""
        total: NDArray[np.int64] = self.counts.sum(1)
        return total if ignore_predicted else total + self.ignored

    def predicted(self) -> NDArray[np.int64]:
        """(num_classes,) pixels predicted as each class."""
        total: NDArray[np.int64] = self.counts.sum(0)
        return total

    def correct(self) -> NDArray[np.int64]:
        """(num_classes,) pixels of each class that were predicted as it."""
        return np.diagonal(self.counts).copy()

    def coverage(self) -> float:
        """Share of the pixels with truth that were given a class rather than 255; nan without pixels."""
        total = int(self.truth().sum())
        return float(self.counts.sum() / total) if total else float("nan")

    def iou(self, *, absent: Absent = "nan", ignore_predicted: bool = False) -> NDArray[np.float64]:
        """Intersection over union per class, 0..1.

        Args:
            absent: value of a class that neither truth nor prediction holds: nan, or zero as the official
                evaluation of MCTformer counts it.
            ignore_predicted: leave out pixels predicted as 255; by default they count as missed.

        Returns:
            (num_classes,) float64.
        """
        union = self.truth(ignore_predicted=ignore_predicted) + self.predicted() - self.correct()
        return _ratio(self.correct(), union, absent=absent)

    def miou(self, *, absent: Absent = "nan", ignore_predicted: bool = False) -> float:
        """Mean of :meth:`iou` over the classes that occur (or over all, with ``absent="zero"``)."""
        return nanmean(self.iou(absent=absent, ignore_predicted=ignore_predicted))

    def recall(self, *, ignore_predicted: bool = False) -> NDArray[np.float64]:
        """(num_classes,) share of each class's true pixels that were found; nan where there are none."""
        return _ratio(self.correct(), self.truth(ignore_predicted=ignore_predicted))

    def precision(self) -> NDArray[np.float64]:
        """(num_classes,) share of each class's predicted pixels that are right; nan where there are none."""
        return _ratio(self.correct(), self.predicted())

    def pixel_accuracy(self, *, ignore_predicted: bool = False) -> float:
        """Share of all pixels that are right, 0..1; nan without pixels."""
        total = int(self.truth(ignore_predicted=ignore_predicted).sum())
        return float(self.correct().sum() / total) if total else float("nan")

    def false_positive_rate(
        self, *, absent: Absent = "nan", ignore_predicted: bool = False
    ) -> NDArray[np.float64]:
        """(num_classes,) wrongly predicted pixels over the union; with the FN rate and IoU it adds to 1."""
        union = self.truth(ignore_predicted=ignore_predicted) + self.predicted() - self.correct()
        return _ratio(self.predicted() - self.correct(), union, absent=absent)

    def false_negative_rate(
        self, *, absent: Absent = "nan", ignore_predicted: bool = False
    ) -> NDArray[np.float64]:
        """(num_classes,) missed pixels over the union."""
        truth = self.truth(ignore_predicted=ignore_predicted)
        return _ratio(truth - self.correct(), truth + self.predicted() - self.correct(), absent=absent)


def joint_histogram(prediction: NDArray[np.integer], truth: NDArray[np.integer]) -> NDArray[np.int64]:
    """Count pairs of values of two 8-bit masks.

    Args:
        prediction: integers 0..255, any shape.
        truth: the same shape.

    Returns:
        (256, 256) int64, rows truth, columns prediction.

    Raises:
        ValueError: shapes differ, or the values are not integers of 0..255.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    for mask in (prediction, truth):
        if mask.dtype.kind not in "iub":
            raise ValueError(f"masks hold integers, not {mask.dtype}")
        if mask.dtype != np.uint8 and mask.size and (mask.min() < 0 or mask.max() > 255):
            raise ValueError("masks hold values of 0..255")
    pairs = truth.astype(np.int32).ravel() * 256 + prediction.astype(np.int32).ravel()
    return np.bincount(pairs, minlength=256 * 256).astype(np.int64).reshape(256, 256)


@dataclass(frozen=True)
class Sweep:
    """Quality at every background threshold; all values 0..1.

    Attributes:
        thresholds: (T,) ascending.
        iou: (T, num_classes), background first.
        miou: (T,) mean over classes.
        false_positive: (T,) mean over classes of false positives over union.
        false_negative: (T,) mean over classes of false negatives over union.
    """

    thresholds: NDArray[np.float64]
    iou: NDArray[np.float64]
    miou: NDArray[np.float64]
    false_positive: NDArray[np.float64]
    false_negative: NDArray[np.float64]

    def best(self) -> tuple[float, float]:
        """Threshold with the highest mIoU (the lowest such), and that mIoU."""
        index = int(np.nanargmax(self.miou))
        return float(self.thresholds[index]), float(self.miou[index])

    def best_greedy(self) -> tuple[float, float]:
        """What MCTformer's evaluation reports: it stops at the first threshold that does not improve.

        A dip ends that search, so it can stay far below :meth:`best`.
        """
        chosen = 0
        for index in range(1, len(self.miou)):
            if not self.miou[index] > self.miou[chosen]:
                break
            chosen = index
        return float(self.thresholds[chosen]), float(self.miou[chosen])


class ThresholdSweep:
    """Confusion matrices of all background thresholds in one pass over the pixels.

    A pixel belongs to its strongest class where that class's map exceeds the threshold, else to the
    background (MCTformer's rule; ties go to the background, then to the first class). So each pixel is
    one count in a histogram of (truth, strongest class, number of thresholds it exceeds).

    Args:
        num_classes: number of mask values, background included.
        thresholds: ascending; default 0.00, 0.01 .. 0.59.
    """

    def __init__(self, num_classes: int, *, thresholds: ArrayLike | None = None) -> None:
        self.num_classes = num_classes
        chosen = OFFICIAL_THRESHOLDS if thresholds is None else thresholds
        self.thresholds: NDArray[np.float64] = np.asarray(chosen, np.float64)
        if self.thresholds.ndim != 1 or not len(self.thresholds) or (np.diff(self.thresholds) <= 0).any():
            raise ValueError("thresholds must be a non-empty ascending list")
        self.histogram = np.zeros((num_classes, num_classes, len(self.thresholds) + 1), np.int64)

    def update(self, maps: NDArray[np.floating], classes: Sequence[int], truth: NDArray[np.uint8]) -> None:
        """Add one image.

        Args:
            maps: (K, H, W) normalised maps of the classes that are present.
            classes: K class indices, 0-based without background.
            truth: (H, W) uint8, 0 background, class index + 1, 255 left out.

        Raises:
            ValueError: shapes or values that don't fit.
        """
        if maps.shape != (len(classes), *truth.shape):
            raise ValueError(f"maps {maps.shape} do not fit {len(classes)} classes of {truth.shape}")
        valid = truth != IGNORE
        true_values = truth[valid].astype(np.int64)
        if true_values.size and int(true_values.max()) >= self.num_classes:
            raise ValueError(f"the truth holds values outside 0..{self.num_classes - 1} and {IGNORE}")
        if len(classes) == 0:
            self.histogram[:, 0, 0] += np.bincount(true_values, minlength=self.num_classes)
            return
        if not np.isfinite(maps).all():
            raise ValueError("maps hold values that are not finite")
        if min(classes) < 0 or max(classes) + 1 >= self.num_classes:
            raise ValueError(f"class indices must be 0..{self.num_classes - 2}")
        # in the order of the classes, so that ties go to the first of them, as argmax over all planes does
        order = np.argsort(np.asarray(classes), kind="stable")
        inside = maps[order][:, valid]
        strongest = inside.argmax(0)
        values = np.take_along_axis(inside, strongest[None], 0)[0].astype(np.float64)
        named = (np.asarray(classes, np.int64)[order] + 1)[strongest]
        # thresholds strictly below the value are those at which the pixel is foreground
        exceeded = np.searchsorted(self.thresholds, values, side="left")
        bins = len(self.thresholds) + 1
        flat = (true_values * self.num_classes + named) * bins + exceeded
        self.histogram += np.bincount(flat, minlength=self.histogram.size).reshape(self.histogram.shape)

    def result(self, *, absent: Absent = "nan") -> Sweep:
        """The curve over all images added so far.

        Args:
            absent: see :meth:`ConfusionMatrix.iou`.
        """
        matrix = ConfusionMatrix(self.num_classes)
        total = self.histogram.sum((1, 2))
        curves: list[tuple[NDArray[np.float64], float, float, float]] = []
        for index in range(len(self.thresholds)):
            matrix.counts = self.histogram[:, :, index + 1 :].sum(2)
            # pixels not exceeding the threshold are background; a true class index is never 0 in here
            matrix.counts[:, 0] = total - matrix.counts[:, 1:].sum(1)
            curves.append(
                (
                    matrix.iou(absent=absent),
                    matrix.miou(absent=absent),
                    nanmean(matrix.false_positive_rate(absent=absent)),
                    nanmean(matrix.false_negative_rate(absent=absent)),
                )
            )
        iou, miou, false_positive, false_negative = (
            np.array(column, np.float64) for column in zip(*curves, strict=True)
        )
        return Sweep(self.thresholds, iou, miou, false_positive, false_negative)


def threshold_sweep(
    images: Iterable[tuple[NDArray[np.floating], Sequence[int], NDArray[np.uint8]]],
    num_classes: int,
    *,
    thresholds: ArrayLike | None = None,
    absent: Absent = "nan",
) -> Sweep:
    """Quality over background thresholds, in one pass over ``(maps, classes, truth)``.

    Args:
        images: see :meth:`ThresholdSweep.update`; read once, so a generator serves.
        num_classes: number of mask values, background included.
        thresholds: ascending; default 0.00, 0.01 .. 0.59.
        absent: see :meth:`ConfusionMatrix.iou`.
    """
    sweep = ThresholdSweep(num_classes, thresholds=thresholds)
    for maps, classes, truth in images:
        sweep.update(maps, classes, truth)
    return sweep.result(absent=absent)


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


def nanmean(values: NDArray[np.float64]) -> float:
    """Mean of the values that are numbers; nan, without a warning, when there are none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")


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


def _ratio(
    numerator: NDArray[np.int64], denominator: NDArray[np.int64], *, absent: Absent = "nan"
) -> NDArray[np.float64]:
    if absent == "zero":
        zeroed: NDArray[np.float64] = numerator / (denominator + _OFFICIAL_EPSILON)
        return zeroed
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result
