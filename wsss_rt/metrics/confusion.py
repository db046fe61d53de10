"""Pixel counts by true and predicted class, and what follows from them: IoU, accuracy, recall, precision.

Counts are int64 throughout: a confusion matrix over COCO holds more pixels than 32 bits count.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsss_rt.classes import IGNORE

# what a class without a single pixel in truth and prediction contributes: nothing, or a zero as in the
# evaluation script that came with MCTformer
Absent = Literal["nan", "zero"]
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


def nanmean(values: NDArray[np.float64]) -> float:
    """Mean of the values that are numbers; nan, without a warning, when there are none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")


def _ratio(
    numerator: NDArray[np.int64], denominator: NDArray[np.int64], *, absent: Absent = "nan"
) -> NDArray[np.float64]:
    if absent == "zero":
        zeroed: NDArray[np.float64] = numerator / (denominator + _OFFICIAL_EPSILON)
        return zeroed
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result
