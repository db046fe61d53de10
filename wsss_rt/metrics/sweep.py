"""Quality of localization maps at every background threshold, in one pass over the pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsss_rt.classes import ignore_value
from wsss_rt.metrics.confusion import Absent, ClassCounts, nanmean

OFFICIAL_THRESHOLDS = np.arange(60) / 100.0


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
    """Counts per class at all background thresholds in one pass over the pixels.

    A pixel belongs to its strongest class where that class's map exceeds the threshold, else to the
    background (MCTformer's rule; ties go to the background, then to the first class). So each pixel is
    one count by its strongest class and the number of thresholds it exceeds, and one more where that class
    is the true one; which class another was taken for does not enter any rate.

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
        shape = (num_classes, len(self.thresholds) + 1)
        self._truth = np.zeros(num_classes, np.int64)
        # by strongest class (0 where no class competes) and thresholds exceeded: all pixels, those whose
        # strongest class is the true one, and, by thresholds alone, those of the background
        self._named, self._right = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._background = np.zeros(shape[1], np.int64)

    def update(
        self,
        maps: NDArray[np.floating],
        classes: Sequence[int],
        truth: NDArray[np.uint8] | NDArray[np.uint16],
    ) -> None:
        """Add one image.

        Args:
            maps: (K, H, W) normalised maps of the classes that are present.
            classes: K class indices, 0-based without background.
            truth: (H, W) uint8 or uint16, 0 background, class index + 1; 255, or 65535 of 16 bits, left out.

        Raises:
            ValueError: shapes or values that don't fit.
        """
        if maps.shape != (len(classes), *truth.shape):
            raise ValueError(f"maps {maps.shape} do not fit {len(classes)} classes of {truth.shape}")
        ignore = ignore_value(truth)
        valid = truth != ignore
        true_values = truth[valid].astype(np.int64)
        if true_values.size and int(true_values.max()) >= self.num_classes:
            raise ValueError(f"the truth holds values outside 0..{self.num_classes - 1} and {ignore}")
        of_truth = np.bincount(true_values, minlength=self.num_classes)
        if len(classes) == 0:
            self._truth += of_truth
            self._named[0, 0] += len(true_values)
            self._background[0] += of_truth[0]
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
        self._truth += of_truth
        flat = named * self._named.shape[1] + exceeded
        for histogram, counted in ((self._named, flat), (self._right, flat[true_values == named])):
            histogram += np.bincount(counted, minlength=histogram.size).reshape(histogram.shape)
        self._background += np.bincount(exceeded[true_values == 0], minlength=len(self._background))

    def result(self, *, absent: Absent = "nan") -> Sweep:
        """The curve over all images added so far.

        Args:
            absent: see :meth:`ConfusionMatrix.iou`.
        """
        total, ignored = self._truth.sum(), np.zeros_like(self._truth)
        curves: list[tuple[NDArray[np.float64], float, float, float]] = []
        for index in range(len(self.thresholds)):
            predicted, correct = (part[:, index + 1 :].sum(1) for part in (self._named, self._right))
            # pixels that do not exceed the threshold are background
            predicted[0] = total - predicted[1:].sum()
            correct[0] = self._background[: index + 1].sum()
            counts = ClassCounts(self._truth, predicted, correct, ignored)
            curves.append(
                (
                    counts.iou(absent=absent),
                    counts.miou(absent=absent),
                    nanmean(counts.false_positive_rate(absent=absent)),
                    nanmean(counts.false_negative_rate(absent=absent)),
                )
            )
        iou, miou, false_positive, false_negative = (
            np.array(column, np.float64) for column in zip(*curves, strict=True)
        )
        return Sweep(self.thresholds, iou, miou, false_positive, false_negative)


def threshold_sweep(
    images: Iterable[tuple[NDArray[np.floating], Sequence[int], NDArray[np.uint8] | NDArray[np.uint16]]],
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
