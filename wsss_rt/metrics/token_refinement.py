"""Box metrics exactly as the repository of the Token Refinement Transformer computes them.

Facts of this variant, all unlike :mod:`wsss_rt.metrics.boxes`:

- maps are cut in 8 bits: truncated to 0..255, and a pixel is set above int(threshold * highest level);
- a box's right and bottom lie behind its last pixel, but a side is counted as right - left + 1 all the same,
  on predictions and truth; for box accuracy, corners are clipped to the last pixel;
- "largest" is the area of the polygon through the centres of a region's border pixels, so that a line has
  none; among equals the region whose first pixel comes last in reading order wins;
- for box accuracy the rim around every hole is a box too;
- a map without a set pixel still has a box;
- Top-1 and Top-5 ask for more than half, GT-known for half or more;
- what it calls MaxBoxAccV2 has one fixed threshold and knows an image's first true box alone.

cv2.findContours and cv2.contourArea gave the official numbers; the same is computed here from runs. Source:
the evaluation of TRT and of wsolevaluation, whose numbers the tests reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsss_rt.metrics.boxes import (
    BOX_THRESHOLDS,
    IOU_LIMITS,
    class_rank,
    last_of_each,
    over_thresholds,
)
from wsss_rt.metrics.regions import Runs, connect, mask_runs

# what the repository cuts at: CUB and ILSVRC
CUB_THRESHOLD, ILSVRC_THRESHOLD = 0.1, 0.12


@dataclass(frozen=True)
class TopFlags:
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


def inclusive_iou(boxes: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union (M, K) of boxes (M, 4) and (K, 4) whose sides are right - left + 1."""
    ours = np.asarray(boxes, np.float64)[:, None]
    theirs = np.asarray(truth, np.float64)[None]
    sides = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2]) + 1
    shared = np.maximum(sides, 0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2] + 1).prod(axis=-1) for box in (ours, theirs)]
    ratio: NDArray[np.float64] = shared / (areas[0] + areas[1] - shared)
    return ratio


def scaled_boxes(boxes: ArrayLike, size: tuple[int, int], side: int) -> NDArray[np.int64]:
    """True boxes (K, 4) of an image as (K, 4) int64 of the (side, side) map: truncated, last pixel at most.

    Args:
        boxes: left, top, right, bottom in pixels of the image.
        size: (height, width) of the image.
        side: S.
    """
    height, width = size
    scaled = np.asarray(boxes, np.float64).reshape(-1, 4) / (width, height, width, height) * side
    return np.clip(scaled, 0, side - 1).astype(np.int64)


def largest_box(pixels: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Box (4,) int64 of the region with the largest polygon above a share of the maximum.

    Args:
        pixels: (S, S) float32 of 0..1.
        threshold: 0..1; see :data:`CUB_THRESHOLD`.

    Returns:
        Left, top, and right, bottom behind the last pixel; (0, 0, 1, 1) where nothing exceeds the threshold.
    """
    levels = _levels(pixels)
    boxes, _ = largest_polygons(mask_runs(levels > int(threshold * levels.max())))
    return boxes[0] if len(boxes) else np.array((0, 0, 1, 1), np.int64)


def top_localization(
    scores: NDArray[np.floating],
    pixels: NDArray[np.float32],
    label: int,
    truth: ArrayLike,
    *,
    threshold: float,
) -> TopFlags:
    """Judge the classification and the box of one image.

    Args:
        scores: (C,) logits or probabilities.
        pixels: (S, S) float32 of 0..1, the map of the true class; no other counts.
        label: index of the true class.
        truth: (K, 4) true boxes in pixels of the map.
        threshold: see :func:`largest_box`.
    """
    overlap = float(inclusive_iou(largest_box(pixels, threshold)[None], truth).max())
    rank = class_rank(scores, label)
    return TopFlags(
        class_1=rank < 1,
        class_5=rank < 5,
        # half exactly counts for GT-known alone
        located_1=rank < 1 and overlap > 0.5,
        located_5=rank < 5 and overlap > 0.5,
        gt_known=overlap >= 0.5,
    )


class ContourBoxAccuracy:
    """MaxBoxAccV2 as the program of wsolevaluation counts it: 8 bits, contours for boxes, sides one longer.

    Args:
        thresholds: (T,) shares of the maximum to try.
        largest_only: only the box of the largest polygon, as in the first version of the measure; otherwise
            every contour, holes included, gives a box, and the best one counts.

    Attributes:
        correct: (3, T) int64 images that are right, per limit of ``IOU_LIMITS`` and threshold.
        images: number of images.
    """

    def __init__(self, thresholds: ArrayLike = BOX_THRESHOLDS, *, largest_only: bool = False) -> None:
        self.thresholds: NDArray[np.float64] = np.atleast_1d(np.asarray(thresholds, np.float64))
        self.largest_only = largest_only
        self.correct = np.zeros((len(IOU_LIMITS), len(self.thresholds)), np.int64)
        self.images = 0

    def update(self, pixels: NDArray[np.float32], truth: ArrayLike) -> None:
        """Add one image.

        Args:
            pixels: (S, S) float32 of 0..1, the map of the true class.
            truth: (K, 4) true boxes in pixels of the map.
        """
        levels = _levels(pixels)
        last = np.array([pixels.shape[1], pixels.shape[0]] * 2) - 1

        def judge(runs: Runs) -> NDArray[np.float64]:
            boxes, masks = largest_polygons(runs) if self.largest_only else contour_boxes(runs)
            # a mask without a pixel has a box of the first pixel
            best = np.full(runs.shape[0], inclusive_iou(np.zeros((1, 4)), truth).max())
            best[masks] = 0
            np.maximum.at(best, masks, inclusive_iou(np.minimum(boxes, last), truth).max(axis=1))
            return best[None]

        cuts = (self.thresholds * float(levels.max())).astype(np.int64)
        best = over_thresholds(levels, cuts, judge)[0]
        self.correct += best >= np.array(IOU_LIMITS)[:, None]
        self.images += 1

    def accuracies(self) -> NDArray[np.float64]:
        """(3,) of 0..1: each limit's accuracy at its best threshold; their mean is MaxBoxAccV2."""
        best: NDArray[np.float64] = self.correct.max(axis=1) / max(self.images, 1)
        return best


class TokenRefinementBoxAccuracy(ContourBoxAccuracy):
    """What the token-refinement repository prints as MaxBoxAccV2: no search, and the first true box alone.

    Args:
        threshold: the fixed share of the maximum.
    """

    def __init__(self, threshold: ArrayLike = CUB_THRESHOLD, *, largest_only: bool = False) -> None:
        super().__init__(threshold, largest_only=largest_only)

    def update(self, pixels: NDArray[np.float32], truth: ArrayLike) -> None:
        """Add one image; of the true boxes (K, 4) the first counts."""
        super().update(pixels, np.asarray(truth)[:1])


def contour_boxes(runs: Runs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Boxes of all contours, those around holes included.

    Returns:
        (N, 4) int64, right and bottom behind the last pixel, and (N,) int64 the mask of each.
    """
    regions, spaces = connect(runs), connect(runs.complement(), 4)
    holes = ~_at_border(spaces.boxes, runs.shape)
    # a hole's contour runs over the pixels around it
    rims = spaces.boxes[holes] + (-1, -1, 1, 1)
    return np.concatenate([regions.boxes, rims]), np.concatenate([regions.masks, spaces.masks[holes]])


def largest_polygons(runs: Runs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Box of the region with the largest polygon in every mask that has one.

    A polygon through pixel centres covers a whole square for each 2x2 block of set pixels and half of one
    for each block of three, holes being filled first. A region inside a hole is smaller than what surrounds
    it, so it never matters.

    Returns:
        (N, 4) int64, right and bottom behind the last pixel, and (N,) int64 the mask of each, ascending.
    """
    space = runs.complement()
    spaces = connect(space, 4)
    outside = _at_border(spaces.boxes, runs.shape)[spaces.labels]
    filled = Runs(space.starts[outside], space.ends[outside], runs.shape).complement()
    regions = connect(filled)
    upper, lower = filled.links()
    starts = filled.starts[upper] + filled.pitch, filled.starts[lower]
    ends = filled.ends[upper] + filled.pitch, filled.ends[lower]
    shared = np.minimum(*ends) - np.maximum(*starts)
    # in pairs of runs: blocks of four lie inside what they share, blocks of three where one reaches further
    squares = shared - 1 + 0.5 * (starts[0] != starts[1]) + 0.5 * (ends[0] != ends[1])
    areas = np.zeros(len(regions.masks))
    np.add.at(areas, regions.labels[upper], np.where(shared > 0, squares, 0))
    order = np.lexsort((np.arange(len(areas)), areas, regions.masks))
    chosen = order[last_of_each(regions.masks[order])]
    return regions.boxes[chosen], regions.masks[chosen]


def _levels(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (pixels * np.float32(255)).astype(np.uint8)


def _at_border(boxes: NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """(N,) whether a region reaches the border of its mask."""
    touches: NDArray[np.bool_] = (boxes[:, :2] == 0).any(axis=1) | (boxes[:, 2:] == shape[:0:-1]).any(axis=1)
    return touches
