"""Boxes and their accuracies, by definition; the token-refinement variant by numbers of the official code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from wsss_rt.metrics import (
    BOX_THRESHOLDS,
    MaxBoxAccV2,
    TopLocalization,
    box_iou,
    box_overlaps,
    class_rank,
    find_regions,
    normalised_map,
    resize_bilinear,
    stretch,
)
from wsss_rt.metrics.boxes import over_thresholds
from wsss_rt.metrics.regions import Runs, mask_runs
from wsss_rt.metrics.token_refinement import (
    ContourBoxAccuracy,
    TokenRefinementBoxAccuracy,
    contour_boxes,
    inclusive_iou,
    largest_box,
    largest_polygons,
    scaled_boxes,
    top_localization,
)

Array = NDArray[Any]


@pytest.fixture(scope="session")
def golden(shared_dir: Path) -> dict[str, Array]:
    return dict(np.load(shared_dir / "goldens" / "token_refinement" / "eval.npz", allow_pickle=False))


@pytest.fixture(scope="session")
def label_maps(golden: dict[str, Array]) -> list[Array]:
    """Maps of the true classes, 224 pixels a side."""
    return [
        normalised_map(cams[label], 224) for cams, label in zip(golden["cams"], golden["labels"], strict=True)
    ]


def true_boxes(golden: dict[str, Array], image: int, side: int) -> Array:
    boxes = golden["gt_boxes"][image, : golden["n_gt"][image]].astype(np.int64)
    return boxes * side // 224


class TestOverlaps:
    def naive(self, pixels: Array, truth: list[list[float]], threshold: float) -> tuple[float, float]:
        regions = find_regions(pixels > threshold)
        iou = [max(self.iou(box, true) for true in truth) for box in regions.boxes.tolist()]
        return max(iou, default=0.0), iou[int(regions.pixels.argmax())] if iou else 0.0

    def iou(self, box: list[float], true: list[float]) -> float:
        """By covering a grid of tenths of pixels."""
        cover = np.zeros((2, 100, 100), bool)
        for plane, (left, top, right, bottom) in zip(cover, (box, true), strict=True):
            plane[round(top * 10) : round(bottom * 10), round(left * 10) : round(right * 10)] = True
        return float((cover[0] & cover[1]).sum() / (cover[0] | cover[1]).sum())

    def test_every_threshold_is_judged_as_if_alone(self) -> None:
        rng = np.random.default_rng(5)
        for _ in range(30):
            pixels = stretch(rng.integers(0, 6, rng.integers(2, 10, 2))).astype(np.float64)
            truth = [[1, 0, 2.5, 2], [0, 0.5, 2, 1]]
            thresholds = [0.5, 0.0, 0.2, 0.2, 0.99, 1.0]
            overlaps = box_overlaps(pixels, truth, thresholds)
            expected = [self.naive(pixels, truth, threshold) for threshold in thresholds]
            assert np.stack([overlaps.best, overlaps.largest], 1) == pytest.approx(np.array(expected))

    def test_boxes_fit_to_the_pixel(self) -> None:
        pixels = np.zeros((20, 30), np.float32)
        pixels[3:9, 4:14] = 1
        assert box_overlaps(pixels, [[4, 3, 14, 9]], [0.5]).best.tolist() == [1]
        assert box_overlaps(pixels, [[4, 3, 14, 6]], [0.5]).best.tolist() == [0.5]

    def test_a_hole_is_no_region(self) -> None:
        pixels = np.ones((9, 9), np.float32)
        pixels[3:6, 3:6] = 0
        assert box_overlaps(pixels, [[3, 3, 6, 6]], [0.5]).best[0] == pytest.approx(9 / 81)

    def test_levels_finer_than_8_bits_count(self) -> None:
        pixels = np.zeros((8, 8), np.float32)
        pixels[0, 0], pixels[4:6, 4:6] = 0.5011, 0.5019
        pixels[7, 0] = 1
        overlaps = box_overlaps(pixels, [[4, 4, 6, 6]], [0.5015, 0.5025])
        assert overlaps.best.tolist() == [1, 0]

    def test_pixels_and_not_boxes_make_a_region_the_largest(self) -> None:
        mask = np.eye(8, dtype=np.float32)
        mask[0:3, 4:8] = 1
        mask[3, 3] = 0
        assert box_overlaps(mask, [[4, 0, 8, 3]], [0.5]).largest.tolist() == [1]

    def test_what_cannot_be_judged_is_refused(self) -> None:
        with pytest.raises(ValueError, match="true box"):
            box_overlaps(np.zeros((2, 2), np.float32), [])
        with pytest.raises(ValueError, match="not finite"):
            box_overlaps(np.full((2, 2), np.nan, np.float32), [[0, 0, 1, 1]])

    def test_iou_of_boxes(self) -> None:
        overlaps = box_iou(
            [[0, 0, 10, 10]], [[0, 0, 10, 10], [0, 0, 10, 20], [30, 30, 40, 40], [10, 0, 12, 4]]
        )
        assert overlaps.tolist() == [[1, 0.5, 0, 0]]
        assert box_iou([[3, 3, 3, 3]], [[3, 3, 3, 3]]).tolist() == [[0]]


class TestAccuracies:
    def test_one_threshold_serves_all_images(self) -> None:
        # the first image is right below 0.3, the second between 0.6 and 0.9: no threshold serves both
        first, second = np.zeros((2, 10, 10), np.float32)
        first[2:8, 2:8], first[0, 9] = 0.3, 1
        second[:], second[5:9, 5:9] = 0.6, 0.9
        second[0, 9] = 1
        measure = MaxBoxAccV2()
        measure.update(first, [[2, 2, 8, 8]])
        measure.update(second, [[5, 5, 9, 9]])
        assert measure.accuracies().tolist() == [0.5, 0.5, 0.5]
        assert measure.value() == 0.5
        assert measure.best_thresholds().tolist() == [0, 0, 0]
        measure.update(second, [[5, 5, 9, 9]])
        assert measure.accuracies() == pytest.approx(2 / 3)
        assert measure.best_thresholds() == pytest.approx(0.6, abs=0.002)

    def test_each_limit_has_its_own_threshold(self) -> None:
        pixels = np.zeros((10, 10), np.float32)
        pixels[:4, :], pixels[:4, :5], pixels[9, 9] = 0.4, 0.8, 1
        measure = MaxBoxAccV2([0.2, 0.6])
        measure.update(pixels, [[0, 0, 6, 4]])
        # boxes of 40 and 20 pixels against one of 24
        assert measure.correct.tolist() == [[1, 1], [1, 1], [0, 1]]
        assert measure.best_thresholds().tolist() == [0.2, 0.2, 0.6]

    def test_a_constant_map_finds_nothing(self) -> None:
        measure = MaxBoxAccV2()
        measure.update(stretch(np.full((7, 7), 3, np.float32)), [[0, 0, 7, 7]])
        assert measure.accuracies().tolist() == [0, 0, 0]

    def test_no_image_is_no_accuracy(self) -> None:
        assert np.isnan(MaxBoxAccV2().value())
        assert np.isnan(TopLocalization().best().gt_known)

    def test_top_localization_needs_class_and_box(self) -> None:
        pixels = np.zeros((10, 10), np.float32)
        pixels[2:6, 2:6] = 1
        good, bad = [[2, 2, 6, 6]], [[7, 7, 9, 9]]
        scores = np.linspace(1, 0, 8)
        measure = TopLocalization([0.5])
        for label, truth in ((0, good), (0, bad), (4, good), (5, good)):
            measure.update(pixels, truth, scores=scores, label=label)
        assert astuple(measure.best()) == (0.5, 2 / 4, 3 / 4, 1 / 4, 2 / 4, 3 / 4)

    def test_half_is_enough(self) -> None:
        pixels = np.zeros((10, 10), np.float32)
        pixels[2:6, 2:6] = 1
        measure = TopLocalization([0.5])
        measure.update(pixels, [[2, 2, 6, 10]], scores=np.ones(2), label=0)
        assert measure.best().top_1 == measure.best().gt_known == 1

    def test_equal_scores_keep_the_order_of_the_classes(self) -> None:
        assert [class_rank(np.array([1, 2, 1, 2]), label) for label in range(4)] == [2, 0, 3, 1]

    def test_accuracies_hardly_depend_on_the_resolution(self, golden: dict[str, Array]) -> None:
        values = []
        for side in (112, 224):
            measure = MaxBoxAccV2(np.arange(0, 1, 0.01))
            for image in range(8):
                tokens = golden["cams"][image, golden["labels"][image]]
                truth = true_boxes(golden, image, 224) * (side / 224)
                measure.add(box_overlaps(normalised_map(tokens, side), truth, measure.thresholds))
            values.append(measure.accuracies())
        assert np.abs(values[0] - values[1]).max() <= 1 / 8


@pytest.mark.parametrize("shape", [(14, 14, 224, 224), (5, 9, 31, 17), (1, 1, 4, 4), (24, 24, 7, 50)])
def test_resizing_is_opencvs(shape: tuple[int, int, int, int]) -> None:
    tokens = np.random.default_rng(1).normal(size=shape[:2]).astype(np.float32)
    ours = resize_bilinear(tokens, *shape[2:])
    assert ours.dtype == np.float32
    assert np.abs(ours - cv2.resize(tokens, shape[:1:-1])).max() < 1e-5


def random_masks(count: int) -> Iterator[Array]:
    rng = np.random.default_rng(7)
    for _ in range(count):
        mask = rng.random(rng.integers(1, 14, 2)) < rng.choice([0.1, 0.3, 0.5, 0.7, 0.9])
        # blocks make solid regions and holes, which noise alone seldom has
        scale = int(rng.integers(1, 4))
        yield mask.repeat(scale, 0).repeat(scale, 1)


class TestVariantAgainstContours:
    """The same from runs as from the library that the official evaluation calls."""

    def contours(self, mask: Array) -> list[Array]:
        return list(cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0])

    def box(self, contour: Array) -> list[int]:
        x, y, width, height = cv2.boundingRect(contour)
        return [x, y, x + width, y + height]

    def test_all_contours_have_their_boxes(self) -> None:
        for mask in random_masks(250):
            boxes, masks = contour_boxes(mask_runs(mask))
            assert not masks.any()
            assert sorted(boxes.tolist()) == sorted(map(self.box, self.contours(mask))), mask.astype(int)

    def test_the_largest_polygon_is_the_same(self) -> None:
        for mask in random_masks(250):
            boxes, _ = largest_polygons(mask_runs(mask))
            contours = self.contours(mask)
            expected = [self.box(max(contours, key=cv2.contourArea))] if contours else []
            assert boxes.tolist() == expected, mask.astype(int)

    def test_a_stack_is_judged_mask_by_mask(self) -> None:
        stack = np.stack([mask[:8, :8] for mask in random_masks(150) if min(mask.shape) >= 8])
        boxes, masks = largest_polygons(mask_runs(stack))
        for index, mask in enumerate(stack):
            assert boxes[masks == index].tolist() == largest_polygons(mask_runs(mask))[0].tolist()

    def test_boxes_of_the_official_contours(self, golden: dict[str, Array], label_maps: list[Array]) -> None:
        for image, (boxes, counts) in enumerate(zip(golden["dbg_boxes"], golden["dbg_nboxes"], strict=True)):
            levels = (label_maps[image] * np.float32(255)).astype(np.uint8)
            for threshold, expected, count in zip(golden["dbg_thresholds"], boxes, counts, strict=True):
                ours, _ = contour_boxes(mask_runs(levels > int(threshold * levels.max())))
                clipped = np.minimum(ours, 223).tolist()
                assert sorted(clipped) == sorted(expected[:count].tolist()), (image, threshold)


class TestVariant:
    @pytest.mark.parametrize("side", [224, 384])
    def test_top_localization_and_boxes(self, golden: dict[str, Array], side: int) -> None:
        differing = 0
        for image, (logits, cams, label) in enumerate(
            zip(golden["logits"], golden["cams"], golden["labels"], strict=True)
        ):
            truth = true_boxes(golden, image, side)
            pixels = {index: normalised_map(cams[index], side) for index in np.argsort(-logits)[:5]}
            pixels[int(label)] = normalised_map(cams[label], side)
            for row, threshold in enumerate(golden["thr_list"].tolist()):
                flags = top_localization(logits, pixels[label], int(label), truth, threshold=threshold)
                expected = golden[f"cls_loc_{side}"][row, :5, image].astype(bool)
                assert list(astuple(flags)) == expected.tolist(), (image, row)
                official = [(int(label), golden[f"gt_class_boxes_{side}"][row, image])]
                official += [(int(entry[0]), entry[1:]) for entry in golden[f"top5_boxes_{side}"][row, image]]
                for index, box in official:
                    error = np.abs(largest_box(pixels[index], threshold) - box).max()
                    # one box lies on the rim of an 8 bit level
                    assert error <= 1
                    differing += int(error > 0)
        assert differing <= (0 if side == 224 else 2)

    @pytest.mark.parametrize("side", [224, 384])
    def test_maps_are_enlarged_before_they_are_stretched(self, golden: dict[str, Array], side: int) -> None:
        name = next(
            key for key in golden if key.startswith("resized_norm_gt_first") and key.endswith(str(side))
        )
        for image, expected in enumerate(golden[name]):
            ours = normalised_map(golden["cams"][image, golden["labels"][image]], side)
            assert np.abs(ours - expected).max() < 1e-5

    @pytest.mark.parametrize("largest_only", [False, True])
    def test_accuracies_over_all_thresholds(
        self, golden: dict[str, Array], label_maps: list[Array], largest_only: bool
    ) -> None:
        contours = "mc0" if largest_only else "mc1"
        for kind in ("clova_sweep", "trtrepo_sweep"):
            measure = ContourBoxAccuracy(largest_only=largest_only)
            for image, pixels in enumerate(label_maps):
                truth = true_boxes(golden, image, 224)
                measure.update(pixels, truth[:1] if kind == "trtrepo_sweep" else truth)
            assert np.array_equal(measure.correct, golden[f"{kind}_numcorrect_{contours}_224"])
            assert np.allclose(100 * measure.accuracies(), golden[f"{kind}_maxbox_{contours}_224"])

    @pytest.mark.parametrize("largest_only", [False, True])
    @pytest.mark.parametrize("side", [224, 384])
    def test_the_repositorys_own_accuracy(
        self, golden: dict[str, Array], side: int, largest_only: bool
    ) -> None:
        measure = TokenRefinementBoxAccuracy(0.1, largest_only=largest_only)
        for image, label in enumerate(golden["labels"]):
            pixels = normalised_map(golden["cams"][image, label], side)
            measure.update(pixels, true_boxes(golden, image, side))
        contours = "mc0" if largest_only else "mc1"
        expected = golden[f"trtrepo_single_thr01_{contours}_{side}"]
        assert np.allclose(100 * measure.accuracies(), expected)

    def test_a_constant_map_has_the_smallest_box(self) -> None:
        pixels = normalised_map(np.full((7, 7), 3, np.float32), 56)
        assert not pixels.any()
        assert largest_box(pixels, 0.1).tolist() == [0, 0, 1, 1]
        measure = ContourBoxAccuracy()
        measure.update(pixels, [[10, 10, 20, 20]])
        assert measure.accuracies().tolist() == [0, 0, 0]

    def test_the_largest_region_wins_and_its_box_ends_behind_it(self) -> None:
        pixels = np.zeros((32, 32), np.float32)
        pixels[2:4, 2:4] = 1
        pixels[10:20, 8:30] = 0.5
        assert largest_box(pixels, 0.1).tolist() == [8, 10, 30, 20]
        # at half of the maximum the comparison is strict
        assert largest_box(pixels, 0.5).tolist() == [2, 2, 4, 4]

    def test_iou_counts_last_pixels_in(self) -> None:
        truth = [[0, 0, 9, 9], [0, 0, 9, 19], [30, 30, 40, 40]]
        assert inclusive_iou([[0, 0, 9, 9]], truth).tolist() == [[1, 0.5, 0]]

    def test_true_boxes_are_truncated(self) -> None:
        boxes = scaled_boxes([[65, 111, 108, 441], [0, 0, 333, 500.0]], (500, 333), 224)
        assert boxes.tolist() == [[43, 49, 72, 197], [0, 0, 223, 223]]


def test_masks_that_thresholds_share_are_judged_once() -> None:
    counted: list[int] = []

    def judge(runs: Runs) -> NDArray[np.float64]:
        counted.append(runs.shape[0])
        starts = runs.starts // (runs.pitch * (runs.shape[1] + 1))
        return np.bincount(starts, minlength=runs.shape[0])[None].astype(np.float64)

    values = np.array([[0, 2, 0, 7]])
    result = over_thresholds(values, BOX_THRESHOLDS * 10, judge)
    assert sum(counted) == 4
    assert result.tolist() == [
        [2.0 if cut < 2 else 1.0 for cut in BOX_THRESHOLDS * 10 if cut < 7]
        + [0.0 for cut in BOX_THRESHOLDS * 10 if cut >= 7]
    ]
