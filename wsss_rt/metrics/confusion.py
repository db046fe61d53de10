"""Pixel counts by true and predicted class, and what follows from them: IoU, accuracy, recall, precision.

Counts are int64 throughout: a confusion matrix over COCO holds more pixels than 32 bits count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsss_rt.classes import WIDE_IGNORE, ignore_value

# what a class without a single pixel in truth and prediction contributes: nothing, or a zero as in the
# evaluation script that came with MCTformer
Absent = Literal["nan", "zero"]
# keeps the official quotient defined where a class is absent
_OFFICIAL_EPSILON = 1e-10


# in a joint histogram, of pixels that their mask ignores
IGNORED = -1


@dataclass(frozen=True)
class Joint:
    """How often each pair of a true and a predicted value occurs; pairs that do not are not in it.

    Attributes:
        truth, prediction: (K,) int64 mask values, ``IGNORED`` (-1) for ignored pixels; pairs are unique.
        counts: (K,) int64 pixels, above 0.
    """

    truth: NDArray[np.int64]
    prediction: NDArray[np.int64]
    counts: NDArray[np.int64]

    def renumbered(self, table: NDArray[np.integer]) -> Joint:
        """With predicted values replaced by ``table[value]``; ignored ones stay ignored."""
        named = self.prediction != IGNORED
        prediction = self.prediction.copy()
        prediction[named] = table[prediction[named]]
        return _joint(self.truth, prediction, self.counts)


class ClassCounts:
    """What is counted per class, and the rates that follow.

    Args:
        decided: (num_classes,) int64, pixels of each true class that were given a class.
        predicted: (num_classes,) int64, pixels predicted as each class, where there is truth.
        correct: (num_classes,) int64, pixels of each class that were predicted as it.
        ignored: (num_classes,) int64, pixels of each true class whose prediction was the ignore value.
    """

    def __init__(
        self,
        decided: NDArray[np.int64],
        predicted: NDArray[np.int64],
        correct: NDArray[np.int64],
        ignored: NDArray[np.int64],
    ) -> None:
        self._decided, self._predicted, self._correct = decided, predicted, correct
        self.ignored = ignored

    def truth(self, *, ignore_predicted: bool = False) -> NDArray[np.int64]:
        """(num_classes,) pixels of each class in the truth."""
        return self._decided.copy() if ignore_predicted else self._decided + self.ignored

    def predicted(self) -> NDArray[np.int64]:
        """(num_classes,) pixels predicted as each class."""
        return self._predicted.copy()

    def correct(self) -> NDArray[np.int64]:
        """(num_classes,) pixels of each class that were predicted as it."""
        return self._correct.copy()

    def coverage(self) -> float:
        """Share of the pixels with truth that were given a class rather than ignored; nan without pixels."""
        total = int(self.truth().sum())
        return float(self._decided.sum() / total) if total else float("nan")

    def iou(self, *, absent: Absent = "nan", ignore_predicted: bool = False) -> NDArray[np.float64]:
        """Intersection over union per class, 0..1.

        Args:
            absent: value of a class that neither truth nor prediction holds: nan, or zero as the official
                evaluation of MCTformer counts it.
            ignore_predicted: leave out pixels predicted as ignore; by default they count as missed.

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


class ConfusionMatrix(ClassCounts):
    """Pixel counts by true and predicted value.

    Pairs that never occur take no memory: a thousand classes have a million, and hardly any is used.

    Args:
        num_classes: number of mask values, background included; values are 0..num_classes-1.

    Attributes:
        ignored: (num_classes,) int64, pixels of each true class whose prediction was the ignore value.
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes <= WIDE_IGNORE:
            raise ValueError(f"num_classes must be 1..{WIDE_IGNORE}, not {num_classes}")
        self.num_classes = num_classes
        super().__init__(*(np.zeros(num_classes, np.int64) for _ in range(4)))
        self._cells = _joint(*(np.zeros(0, np.int64) for _ in range(3)))
        self._waiting: list[Joint] = []

    @property
    def counts(self) -> NDArray[np.int64]:
        """(num_classes, num_classes) int64, rows truth, columns prediction; 8 bytes a cell."""
        dense = np.zeros((self.num_classes, self.num_classes), np.int64)
        cells = self.cells()
        dense[cells.truth, cells.prediction] = cells.counts
        return dense

    def cells(self) -> Joint:
        """The pairs that occur, without ignored pixels, by truth and then by prediction."""
        if self._waiting:
            parts = [self._cells, *self._waiting]
            self._cells = _joint(
                *(np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS)
            )
            self._waiting = []
        return self._cells

    def update(self, prediction: NDArray[np.integer], truth: NDArray[np.integer]) -> None:
        """Add the pixels of one image, or of many.

        Args:
            prediction: integers 0..num_classes-1 or the ignore value, any shape.
            truth: the same shape; ignored pixels are left out.

        Raises:
            ValueError: shapes differ, or a value is outside the range.
        """
        self.add_joint(joint_histogram(prediction, truth))

    def add_joint(self, joint: Joint) -> None:
        """Add what :func:`joint_histogram` counted.

        Raises:
            ValueError: a value is outside the range.
        """
        size = self.num_classes
        known = joint.truth != IGNORED
        truth, prediction, counts = joint.truth[known], joint.prediction[known], joint.counts[known]
        if joint.truth.max(initial=0) >= size or prediction.max(initial=0) >= size:
            raise ValueError(f"a mask holds values outside 0..{size - 1} and its ignore value")
        left_out = prediction == IGNORED
        np.add.at(self.ignored, truth[left_out], counts[left_out])
        truth, prediction, counts = truth[~left_out], prediction[~left_out], counts[~left_out]
        np.add.at(self._decided, truth, counts)
        np.add.at(self._predicted, prediction, counts)
        same = truth == prediction
        self._correct[truth[same]] += counts[same]
        self._waiting.append(Joint(truth, prediction, counts))
        # put in order only when there is much of it, so that each image costs what it holds
        if sum(len(part.counts) for part in self._waiting) > 10_000 + 4 * len(self._cells.counts):
            self.cells()

    def merge(self, other: ConfusionMatrix) -> None:
        """Add another matrix of the same size."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"{other.num_classes} classes do not fit {self.num_classes}")
        self.add_joint(other.cells())
        self.ignored += other.ignored


_COLUMNS = ("truth", "prediction", "counts")


def joint_histogram(prediction: NDArray[np.integer], truth: NDArray[np.integer]) -> Joint:
    """Count pairs of values of two masks, each of 8 or of 16 bits.

    Args:
        prediction: uint16, of which 65535 is ignored; or other integers 0..255, of which 255 is.
        truth: the same shape.

    Raises:
        ValueError: shapes differ, or the values are not integers of the range.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    limits = []
    for mask in (truth, prediction):
        if mask.dtype.kind not in "iub":
            raise ValueError(f"masks hold integers, not {mask.dtype}")
        limit = ignore_value(mask)
        if (
            mask.dtype.name not in ("uint8", "uint16")
            and mask.size
            and (mask.min() < 0 or mask.max() > limit)
        ):
            raise ValueError(f"masks hold values of 0..{limit}")
        limits.append(limit)
    columns = limits[1] + 1
    pairs = truth.astype(np.int64).ravel() * columns + prediction.ravel()
    if columns * (limits[0] + 1) <= 1 << 16:
        counts = np.bincount(pairs)
        found = np.flatnonzero(counts)
        counts = counts[found]
    else:
        found, counts = np.unique(pairs, return_counts=True)
    values = [found // columns, found % columns]
    for column, limit in zip(values, limits, strict=True):
        column[column == limit] = IGNORED
    return Joint(values[0], values[1], counts.astype(np.int64))


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


def _joint(truth: NDArray[np.int64], prediction: NDArray[np.int64], counts: NDArray[np.int64]) -> Joint:
    """Pairs by truth and then by prediction, repeated ones added up."""
    order = np.lexsort((prediction, truth))
    truth, prediction, counts = truth[order], prediction[order], counts[order]
    first = np.ones(len(truth), bool)
    first[1:] = (truth[1:] != truth[:-1]) | (prediction[1:] != prediction[:-1])
    starts = np.flatnonzero(first)
    total = np.add.reduceat(counts, starts) if len(starts) else counts
    return Joint(truth[first], prediction[first], total)
