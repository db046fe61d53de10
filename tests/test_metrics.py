"""Metrics against numbers of the official evaluation, and against definitions computed pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.processes import run_python
from wsss_rt.metrics import (
    ConfusionMatrix,
    Joint,
    ThresholdSweep,
    average_precision,
    mean_average_precision,
    threshold_sweep,
)


@pytest.fixture(scope="module")
def golden(goldens_dir: Path) -> dict[str, np.ndarray]:
    with np.load(goldens_dir / "mctformer" / "evaluation_sweep.npz", allow_pickle=False) as archive:
        return dict(archive)


def golden_images(golden: dict[str, np.ndarray]) -> list[tuple[np.ndarray, list[int], np.ndarray]]:
    return [
        (golden[f"{name}_cam"], golden[f"{name}_classes"].tolist(), golden[f"{name}_gt"])
        for name in golden["names"]
    ]


class TestOfficialSweep:
    def test_every_curve_is_the_official_one(self, golden: dict[str, np.ndarray]) -> None:
        sweep = threshold_sweep(golden_images(golden), 21, absent="zero")
        assert np.array_equal(sweep.thresholds, golden["thresholds"])
        for ours, theirs in [
            (sweep.miou, "miou"),
            (sweep.iou, "iou"),
            (sweep.false_positive, "fp"),
            (sweep.false_negative, "fn"),
        ]:
            assert np.abs(ours * 100 - golden[theirs]).max() < 1e-9

    def test_the_greedy_stop_and_the_true_best_differ_as_officially(
        self, golden: dict[str, np.ndarray]
    ) -> None:
        sweep = threshold_sweep(golden_images(golden), 21, absent="zero")
        greedy_threshold, greedy = sweep.best_greedy()
        assert greedy_threshold == float(golden["best_thr"]) == 0.42
        assert greedy * 100 == pytest.approx(float(golden["best_miou"]), abs=1e-9)
        best_threshold, best = sweep.best()
        assert best_threshold == float(golden["global_best_thr"]) == 0.59
        assert best > greedy

    def test_label_maps_score_as_the_official_png_mode(self, golden: dict[str, np.ndarray]) -> None:
        matrix = ConfusionMatrix(21)
        for maps, classes, truth in golden_images(golden):
            planes = np.zeros((21, *truth.shape))
            planes[0] = 0.45
            planes[np.array(classes) + 1] = maps
            matrix.update(planes.argmax(0).astype(np.uint8), truth)
        assert matrix.miou(absent="zero") * 100 == pytest.approx(float(golden["png_miou"]), abs=1e-9)

    def test_one_pass_equals_a_matrix_per_threshold(self, golden: dict[str, np.ndarray]) -> None:
        thresholds = [0.1, 0.35, 0.8]
        sweep = threshold_sweep(golden_images(golden), 21, thresholds=thresholds)
        for index, threshold in enumerate(thresholds):
            matrix = ConfusionMatrix(21)
            for maps, classes, truth in golden_images(golden):
                values = np.array(classes)[maps.argmax(0)] + 1
                matrix.update(np.where(maps.max(0) > threshold, values, 0).astype(np.uint8), truth)
            assert np.array_equal(sweep.iou[index], matrix.iou(), equal_nan=True)


class TestSweepRules:
    def test_a_value_equal_to_the_threshold_is_background(self) -> None:
        maps, truth = np.array([[[0.5, 0.6]]]), np.array([[0, 1]], np.uint8)
        assert threshold_sweep([(maps, [0], truth)], 2, thresholds=[0.5]).miou[0] == 1.0

    def test_ties_go_to_the_first_class_whatever_the_order_of_the_maps(self) -> None:
        maps = np.full((2, 1, 1), 0.7)
        for classes in ([2, 0], [0, 2]):
            sweep = threshold_sweep([(maps, classes, np.array([[1]], np.uint8))], 4, thresholds=[0.1])
            assert sweep.iou[0, 1] == 1.0

    def test_an_image_without_classes_is_all_background(self) -> None:
        truth = np.array([[0, 1, 255]], np.uint8)
        sweep = threshold_sweep([(np.zeros((0, 1, 3)), [], truth)], 2)
        assert sweep.iou[0].tolist() == [0.5, 0.0]

    def test_maps_that_do_not_fit_are_refused(self) -> None:
        sweep = ThresholdSweep(3)
        truth = np.zeros((2, 2), np.uint8)
        with pytest.raises(ValueError, match="do not fit"):
            sweep.update(np.zeros((1, 2, 3)), [0], truth)
        with pytest.raises(ValueError, match="class indices"):
            sweep.update(np.zeros((1, 2, 2)), [2], truth)
        with pytest.raises(ValueError, match="not finite"):
            sweep.update(np.full((1, 2, 2), np.nan), [0], truth)
        with pytest.raises(ValueError, match="outside"):
            sweep.update(np.zeros((1, 2, 2)), [0], truth + 3)


class TestConfusionMatrix:
    def test_every_figure_of_a_case_counted_by_hand(self) -> None:
        truth = np.array([0, 0, 0, 1, 1, 2, 2, 255], np.uint8)
        prediction = np.array([0, 0, 1, 1, 255, 2, 0, 1], np.uint8)
        matrix = ConfusionMatrix(4)
        matrix.update(prediction, truth)
        # class 0: TP 2, T 3, P 3; class 1: TP 1, T 2, P 2; class 2: TP 1, T 2, P 1; class 3 nowhere
        assert matrix.iou()[:3].tolist() == [2 / 4, 1 / 3, 1 / 2]
        assert np.isnan(matrix.iou()[3])
        assert matrix.miou() == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
        assert matrix.miou(absent="zero") == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 4)
        assert matrix.recall()[:3].tolist() == [2 / 3, 1 / 2, 1 / 2]
        assert matrix.precision()[:3].tolist() == [2 / 3, 1 / 2, 1.0]
        assert matrix.pixel_accuracy() == pytest.approx(4 / 7)
        rates = matrix.false_positive_rate() + matrix.false_negative_rate() + matrix.iou()
        assert rates[:3] == pytest.approx([1, 1, 1])

    def test_predicted_ignore_is_wrong_unless_left_out(self) -> None:
        truth = np.array([1, 1, 1, 0], np.uint8)
        prediction = np.array([1, 255, 255, 0], np.uint8)
        matrix = ConfusionMatrix(2)
        matrix.update(prediction, truth)
        assert matrix.iou().tolist() == [1.0, 1 / 3]
        assert matrix.iou(ignore_predicted=True).tolist() == [1.0, 1.0]
        assert matrix.pixel_accuracy() == 0.5
        assert matrix.pixel_accuracy(ignore_predicted=True) == 1.0
        assert matrix.coverage() == 0.5

    def test_counts_pass_32_bits(self) -> None:
        one = np.array([1])
        joint = Joint(one, one, np.array([2**31 - 10]))
        matrix = ConfusionMatrix(2)
        for _ in range(5):
            matrix.add_joint(joint)
        assert matrix.counts.dtype == np.int64
        assert matrix.truth()[1] == 5 * (2**31 - 10)
        assert matrix.iou()[1] == 1.0

    @pytest.mark.parametrize("side", ["prediction", "truth"])
    def test_values_outside_the_classes_are_refused(self, side: str) -> None:
        good, bad = np.array([[0, 1]], np.uint8), np.array([[0, 2]], np.uint8)
        pair = {"prediction": good, "truth": good} | {side: bad}
        with pytest.raises(ValueError, match="outside 0..1"):
            ConfusionMatrix(2).update(**pair)

    def test_masks_of_other_sizes_and_kinds_are_refused(self) -> None:
        with pytest.raises(ValueError, match="differ in shape"):
            ConfusionMatrix(2).update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
        with pytest.raises(ValueError, match="integers"):
            ConfusionMatrix(2).update(np.zeros((2, 2)), np.zeros((2, 2), np.uint8))
        with pytest.raises(ValueError, match=r"0\.\.255"):
            ConfusionMatrix(2).update(np.full((2, 2), -1), np.zeros((2, 2), np.uint8))

    def test_merging_parts_equals_the_whole(self) -> None:
        rng = np.random.default_rng(3)
        truth, prediction = rng.integers(0, 5, (2, 40, 30)).astype(np.uint8)
        whole, first, second = (ConfusionMatrix(5) for _ in range(3))
        whole.update(prediction, truth)
        first.update(prediction[:13], truth[:13])
        second.update(prediction[13:], truth[13:])
        first.merge(second)
        assert np.array_equal(first.counts, whole.counts)

    def test_masks_of_8_and_16_bits_ignore_their_own_largest_value(self) -> None:
        truth = np.array([0, 1, 5, 255, 5, 5], np.uint8)
        prediction = np.array([0, 255, 5, 5, 60_000, 65_535], np.uint16)
        matrix = ConfusionMatrix(60_001)
        matrix.update(prediction, truth)
        assert matrix.truth()[[0, 1, 5, 255]].tolist() == [1, 1, 3, 0]
        assert matrix.predicted()[[0, 5, 255, 60_000]].tolist() == [1, 1, 1, 1]
        assert matrix.ignored.sum() == matrix.ignored[5] == 1
        cells = matrix.cells()
        assert np.stack([cells.truth, cells.prediction, cells.counts], 1).tolist() == [
            [0, 0, 1], [1, 255, 1], [5, 5, 1], [5, 60_000, 1],
        ]  # fmt: skip

    def test_nothing_counted_is_nan_and_not_a_number(self) -> None:
        matrix = ConfusionMatrix(3)
        assert np.isnan([matrix.miou(), matrix.pixel_accuracy(), matrix.coverage()]).all()


class TestAveragePrecision:
    def test_textbook_ranking(self) -> None:
        # hits at ranks 1, 3 and 4
        precision = average_precision([[0.9], [0.8], [0.7], [0.6]], [[1], [0], [1], [1]])
        assert precision == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3])

    def test_equal_scores_do_not_depend_on_the_order_of_images(self) -> None:
        assert average_precision([[0.5]] * 4, [[1], [1], [0], [0]]) == pytest.approx([0.5])
        assert average_precision([[0.5]] * 4, [[0], [0], [1], [1]]) == pytest.approx([0.5])

    def test_a_class_that_never_occurs_is_left_out_of_the_mean(self) -> None:
        scores, targets = [[0.9, 0.1], [0.2, 0.3]], [[1, 0], [0, 0]]
        assert np.isnan(average_precision(scores, targets)[1])
        assert mean_average_precision(scores, targets) == 1.0

    def test_per_image_ranks_the_classes_of_an_image(self) -> None:
        scores, targets = [[0.9, 0.1, 0.5], [0.1, 0.2, 0.3]], [[1, 0, 1], [1, 0, 0]]
        assert average_precision(scores, targets, per="image") == pytest.approx([1.0, 1 / 3])

    def test_agrees_with_the_definition_on_random_rankings(self) -> None:
        rng = np.random.default_rng(0)
        scores = rng.integers(0, 12, (60, 3)) / 4
        targets = rng.random((60, 3)) < 0.3
        expected = []
        for column in range(3):
            area, recall = 0.0, 0.0
            for threshold in sorted(set(scores[:, column]), reverse=True):
                chosen = scores[:, column] >= threshold
                hits = (targets[:, column] & chosen).sum()
                area += (hits / targets[:, column].sum() - recall) * hits / chosen.sum()
                recall = hits / targets[:, column].sum()
            expected.append(area)
        assert average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)

    def test_scores_that_are_not_numbers_are_refused(self) -> None:
        with pytest.raises(ValueError, match="not finite"):
            average_precision([[float("nan")]], [[1]])
        with pytest.raises(ValueError, match="shape"):
            average_precision([[0.1, 0.2]], [[1]])


def test_numpy_is_all_they_need() -> None:
    code = (
        "import sys, wsss_rt.metrics, wsss_rt.metrics.token_refinement\n"
        "bad = {'cv2', 'PIL', 'torch', 'scipy'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
