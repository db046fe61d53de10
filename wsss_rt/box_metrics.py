"""Boxes from localization maps, and how well they fit: Top-1 and Top-5 localization, GT-known, MaxBoxAccV2.

For data of one class per image with boxes and no masks (CUB, ILSVRC). The conventions are those of the
official evaluations, odd ones included: a side of a box counts its last pixel once more, maps are cut to 8
bits before they are compared, and boxes of predictions end one pixel behind the object.

Boxes are int64 corners (left, top, right, bottom) in pixels of the square that maps are enlarged to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# of MaxBoxAccV2 (Choe et al., CVPR 2020): 0, 0.001 .. 0.999
SWEEP = np.arange(0, 1, 0.001)
IOU_LIMITS = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class TopLocalization:
    """What is right about one image.

    Attributes:
        class_1: the strongest class is the true one.
        class_5: the true class is among the five strongest.
        located_1: ``class_1``, and the box of its map overlaps a true box by more than half.
        located_5: ``class_5``, and the same of the true class's map.
        gt_known: the box of the true class's map overlaps a true box by half or more, whatever the scores.
    """

    class_1: bool
    class_5: bool
    located_1: bool
    located_5: bool
    gt_known: bool


def normalised_map(tokens: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Enlarge a map (h, w) to (side, side), bilinear, then stretch it to 0..1; a constant one becomes 0."""
    pixels = cv2.resize(np.ascontiguousarray(tokens, np.float32), (side, side))
    low, high = pixels.min(), pixels.max()
    if not high > low:
        return np.zeros((side, side), np.float32)
    stretched: NDArray[np.float32] = (pixels - low) / (high - low)
    return stretched


def largest_box(pixels: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Box (4,) around the largest region above a share of the maximum; right and bottom are exclusive.

    Args:
        pixels: (S, S) float32 of 0..1.
        threshold: 0..1; official runs use 0.1 (CUB) and 0.12 (ILSVRC).

    Returns:
        The region of largest polygon area; (0, 0, 1, 1) where nothing exceeds the threshold.
    """
    levels = _levels(pixels)
    contours = _contours(levels, int(threshold * levels.max()))
    if not contours:
        return np.array((0, 0, 1, 1), np.int64)
    return _box(max(contours, key=cv2.contourArea))


def box_iou(boxes: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union (M, K) of boxes (M, 4) and (K, 4); last pixels are counted in, on both."""
    ours = np.asarray(boxes, np.float64)[:, None]
    theirs = np.asarray(truth, np.float64)[None]
    sides = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2]) + 1
    shared = np.maximum(sides, 0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2] + 1).prod(axis=-1) for box in (ours, theirs)]
    ratio: NDArray[np.float64] = shared / (areas[0] + areas[1] - shared)
    return ratio


def top_localization(
    scores: NDArray[np.float32],
    maps: NDArray[np.float32],
    label: int,
    truth: ArrayLike,
    *,
    side: int,
    threshold: float,
) -> TopLocalization:
    """Judge the classification and the boxes of one image.

    Args:
        scores: (C,) logits.
        maps: (C, h, w) float32.
        label: the true class.
        truth: (K, 4) true boxes in pixels of the (side, side) image.
        side: S.
        threshold: see :func:`largest_box`.
    """
    strongest = np.argsort(-scores, kind="stable")[:5]

    def overlap(index: int) -> float:
        box = largest_box(normalised_map(maps[index], side), threshold)
        return float(box_iou(box[None], truth).max())

    of_label = overlap(label)
    first, among = bool(strongest[0] == label), bool((strongest == label).any())
    return TopLocalization(
        class_1=first,
        class_5=among,
        # half exactly counts for GT-known alone
        located_1=first and of_label > 0.5,
        located_5=among and of_label > 0.5,
        gt_known=of_label >= 0.5,
    )


class MaxBoxAccuracy:
    """Share of images with a good box at the best threshold, one threshold for all images (MaxBoxAccV2).

    Args:
        side: S, pixels of the enlarged map.
        thresholds: shares of the maximum to try; a single one gives what the official evaluation of token
            refinement calls by the same name.
        largest_only: only the box of the largest region, as in the first version of the measure; otherwise
            every contour, holes included, gives a box, and the best one counts.
    """

    def __init__(self, *, side: int = 224, thresholds: ArrayLike = SWEEP, largest_only: bool = False) -> None:
        self.side = side
        self.thresholds: NDArray[np.float64] = np.asarray(thresholds, np.float64)
        self.largest_only = largest_only
        self.correct = np.zeros((len(IOU_LIMITS), len(self.thresholds)), np.int64)
        self.images = 0

    def update(self, tokens: NDArray[np.float32], truth: ArrayLike) -> None:
        """Add one image.

        Args:
            tokens: (h, w) float32, the map of the true class.
            truth: (K, 4) true boxes.
        """
        levels = _levels(normalised_map(tokens, self.side))
        # 8 bits leave few different masks: each is measured once
        cuts, position = np.unique(
            (self.thresholds * float(levels.max())).astype(np.int64), return_inverse=True
        )
        best = np.array([box_iou(self._boxes(_contours(levels, int(cut))), truth).max() for cut in cuts])
        for row, limit in enumerate(IOU_LIMITS):
            self.correct[row] += (best >= limit)[position]
        self.images += 1

    def accuracies(self) -> NDArray[np.float64]:
        """(3,) of 0..1: at the best threshold for each of :data:`IOU_LIMITS`; their mean is MaxBoxAccV2."""
        best: NDArray[np.float64] = self.correct.max(axis=1) / max(self.images, 1)
        return best

    def _boxes(self, contours: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
        if not contours:
            return np.zeros((1, 4), np.int64)
        chosen = [max(contours, key=cv2.contourArea)] if self.largest_only else contours
        return np.minimum(np.stack([_box(contour) for contour in chosen]), self.side - 1)


def _levels(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (pixels * np.float32(255)).astype(np.uint8)


def _contours(levels: NDArray[np.uint8], cut: int) -> Sequence[NDArray[np.int32]]:
    found, _ = cv2.findContours((levels > cut).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    contours: Sequence[NDArray[np.int32]] = found
    return contours


def _box(contour: NDArray[np.int32]) -> NDArray[np.int64]:
    x, y, width, height = cv2.boundingRect(contour)
    return np.array((x, y, x + width, y + height), np.int64)
