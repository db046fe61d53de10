"""`--precision mixed`: who gets a second look, and that it decides."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.label_models import ColorEngine, blocks, color_card, tied, write_color_model
from wsss_rt.engines.base import EngineOutput
from wsss_rt.engines.mixed import MixedEngine
from wsss_rt.engines.runtime import engine_error
from wsss_rt.engines.windows import windowed
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.label_plan import Job
from wsss_rt.label_run import label_folder
from wsss_rt.labeler import Labeler
from wsss_rt.model_card import InputSpec, Recommended
from wsss_rt.options import LabelOptions
from wsss_rt.progress import Silent
from wsss_rt.second_look import KEPT, NEAR, NOTE, TOLERATED, is_doubtful, near_ties
from wsss_rt.segment import merge_passes

NAMES = ("red", "green", "blue")


def outputs(planes: np.ndarray, scores: tuple[float, ...] = (5.0, -5.0, -5.0)) -> list[EngineOutput]:
    return [EngineOutput(np.array([scores], np.float32), planes[None].astype(np.float32))]


def ramp(background: float, near: float) -> np.ndarray:
    """A map (10, 10) of 0..1; a part of ``near`` lies at the background's score, the rest far off."""
    values = np.full(100, 1.0)
    values[: round(100 * near)] = background + 0.005
    values[-10:] = 0.0
    return values.reshape(10, 10)


class Counting(ColorEngine):
    """Counts its calls; its maps are brought near a tie where ``tied``."""

    def __init__(self, *, tied: bool = False, broken: bool = False, failure: Exception | None = None) -> None:
        super().__init__()
        self.calls, self.tied, self.broken, self.failure = 0, tied, broken, failure
        self.closed = False

    def infer(self, images: np.ndarray) -> EngineOutput:
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        found = super().infer(images)
        if self.broken:
            return EngineOutput(found.scores, np.full_like(found.maps, np.nan))
        if self.tied:
            # outside of what is red: its background score, to the second digit
            flat = np.where(found.maps > 0.5 * found.maps.max(), found.maps.max(), 0.405 * found.maps.max())
            flat[..., 0] = flat[..., -1] = 0
            return EngineOutput(found.scores, flat.astype(np.float32))
        return found

    def close(self) -> None:
        self.closed = True


class Told(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def red_square() -> np.ndarray:
    image = np.full((64, 96, 3), 100, np.uint8)
    image[16:48, 8:40] = (250, 10, 10)
    return image


@pytest.mark.parametrize(("near", "doubtful"), [(0.0, False), (0.04, False), (0.05, True), (0.5, True)])
def test_the_part_of_tokens_near_a_tie_decides(near: float, doubtful: bool) -> None:
    card = color_card()
    planes = np.stack([ramp(0.4, near), np.zeros((10, 10)), np.zeros((10, 10))])
    assert near_ties([planes[None].astype(np.float32)], (0,), card, 0.4) == pytest.approx(near)
    assert (near >= TOLERATED) is doubtful
    assert is_doubtful(outputs(planes), (0,), card=card, background=0.4) is doubtful


def test_classes_tie_with_each_other_too() -> None:
    card = color_card()
    plane = ramp(0.0, 0.0)
    planes = np.stack([plane, plane, np.zeros((10, 10))])
    assert not is_doubtful(outputs(planes), (0,), card=card, background=0.4)
    assert is_doubtful(outputs(planes), (0, 1), card=card, background=0.4)
    # no class competes, and nothing is to be decided
    assert not is_doubtful(outputs(planes), (), card=card, background=0.4)


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5)])
@pytest.mark.parametrize("rows", [1, 2])
def test_some_pixels_of_a_segmenters_large_maps_tell_what_all_would(
    rows: int, scales: tuple[float, ...]
) -> None:
    card = color_card(kind="segmenter", has_background=True)
    noise = np.random.default_rng(0).random((rows, 4, 12, 16), np.float32)
    for spread in (0.3, 0.6, 2.0):
        grown = [
            np.stack(
                [[cv2.resize(plane, None, fx=16 * scale, fy=16 * scale) for plane in row] for row in noise]
            )
            for scale in scales
        ]
        maps = [(spread * entry).astype(np.float32) for entry in grown]
        best = np.sort(merge_passes(maps, size=(192, 256)), axis=0)
        every = float(np.mean(best[-1] - best[-2] < NEAR))
        assert 0.02 < every < 0.8
        assert near_ties(maps, (0, 1, 2), card, 0.0) == pytest.approx(every, abs=0.01)
    # few pixels are all asked
    small = [entry[..., :6, :5] for entry in maps[:1]]
    best = np.sort(merge_passes(small, size=(6, 5)), axis=0)
    assert near_ties(small, (0, 1, 2), card, 0.0) == np.mean(best[-1] - best[-2] < NEAR)


def test_a_predicted_tag_near_its_threshold_is_a_doubt() -> None:
    card = color_card()
    planes = np.stack([ramp(0.4, 0.0)] * 3)
    assert is_doubtful(outputs(planes, (5.0, 0.01, -5.0)), None, card=card, background=0.4)
    assert not is_doubtful(outputs(planes, (5.0, -5.0, -5.0)), None, card=card, background=0.4)
    # given tags stand, whatever the model says
    assert not is_doubtful(outputs(planes, (5.0, 0.01, -5.0)), (0,), card=card, background=0.4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_a_doubt(value: float) -> None:
    planes = np.full((3, 10, 10), value)
    assert is_doubtful(outputs(planes), (0,), card=color_card(), background=0.4)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("tags", [None, ["red"]])
def test_doubtful_images_get_the_exact_engines_mask(near: bool, tags: list[str] | None) -> None:
    fast, exact = Counting(tied=near), Counting()
    labeler = Labeler(engine=MixedEngine(fast, exact))
    found = labeler.label(red_square(), tags=tags)
    alone = Labeler(engine=ColorEngine()).label(red_square(), tags=tags)
    assert found.mask is not None and alone.mask is not None
    assert np.array_equal(found.mask, alone.mask)
    assert (fast.calls, exact.calls) == (1, int(near))
    assert (NOTE in found.notes) is near


def test_numbers_that_only_the_fast_engine_loses_cost_no_image() -> None:
    found = Labeler(engine=MixedEngine(Counting(broken=True), Counting())).label(red_square())
    assert found.error is None and NOTE in found.notes
    lost = Labeler(engine=MixedEngine(Counting(broken=True), Counting(broken=True))).label(red_square())
    assert lost.error is not None and lost.error.code == "nonfinite_output"


SHAPE = (2, 3, 64, 96)
# as the libraries word them
FAILURES = {
    "RuntimeError: bad allocation": "float32 did not fit in memory",
    "Reshape node failed": "float32 failed (openvino failed on an input of 96x64 px. Reshape node failed)",
}


@pytest.mark.parametrize("said", FAILURES)
def test_an_image_that_float32_fails_on_keeps_its_mask_and_says_so(said: str) -> None:
    failure = engine_error(RuntimeError(said), "openvino", SHAPE)
    exact = Counting(failure=failure)
    found = Labeler(engine=MixedEngine(Counting(tied=True), exact)).label(red_square(), tags=["red"])
    alone = Labeler(engine=Counting(tied=True)).label(red_square(), tags=["red"])
    assert found.error is None and found.mask is not None and alone.mask is not None
    assert np.array_equal(found.mask, alone.mask)
    assert [note for note in found.notes if KEPT in note] == [f"{FAILURES[said]}; {KEPT}"]
    assert NOTE not in found.notes and exact.calls == 1


def test_memory_that_numpy_lacks_counts_as_memory() -> None:
    mixed = MixedEngine(Counting(tied=True), Counting(failure=MemoryError()))
    found = Labeler(engine=mixed).label(red_square(), tags=["red"])
    assert found.error is None and f"float32 did not fit in memory; {KEPT}" in found.notes


def test_without_a_mask_to_keep_the_exact_engines_error_is_told() -> None:
    full = engine_error(MemoryError(), "openvino", SHAPE)
    for failure in (full, MemoryError()):
        mixed = MixedEngine(Counting(broken=True), Counting(failure=failure))
        found = Labeler(engine=mixed).label(red_square(), tags=["red"])
        assert found.error is not None and found.error.code == "out_of_memory"


def test_a_lost_device_ends_the_run_and_nothing_is_tried_again() -> None:
    lost = engine_error(RuntimeError("CUDA error: an illegal memory access"), "onnxruntime", SHAPE)
    fast, exact = Counting(tied=True), Counting(failure=lost)
    with pytest.raises(WsssError, match="lost its device"):
        Labeler(engine=MixedEngine(fast, exact)).label(red_square(), tags=["red"])
    assert (fast.calls, exact.calls) == (1, 1)


def test_a_run_counts_the_masks_that_were_kept(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "b"):
        Image.fromarray(red_square()).save(photos / f"{name}.png")
    model = write_color_model(tmp_path / "model.onnx")
    full = engine_error(MemoryError(), "openvino", SHAPE)
    told = Told()
    done = label_folder(
        Job(inputs=[str(photos)], out=tmp_path / "out", model=model, max_errors=0),
        engine=MixedEngine(Counting(tied=True), Counting(failure=full)),
        progress=told,
    )
    # with --fail-fast too: these images have masks
    assert (done.labelled, done.failed, done.stopped) == (2, 0, "")
    session = json.loads((tmp_path / "out" / "run.json").read_text())["session"]
    assert (session["second_looks"], session["second_looks_failed"]) == (0, 2)
    assert any("2 images that float32 failed on kept their bfloat16 masks" in line for line in told.lines)
    records = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert all(f"float32 did not fit in memory; {KEPT}" in record["notes"] for record in records)


def test_both_engines_are_closed() -> None:
    fast, exact = Counting(), Counting()
    MixedEngine(fast, exact).close()
    assert fast.closed and exact.closed


def test_windows_slide_for_the_second_look_too() -> None:
    engine = MixedEngine(Counting(), Counting())
    engine.card = color_card(kind="segmenter", input=InputSpec(patch=8, window=64, stride=64))
    slid = windowed(engine)
    assert type(slid.exact) is type(slid)  # type: ignore[attr-defined]
    assert windowed(ColorEngine()).__class__ is ColorEngine


class TestOpenVino:
    """The real engines, where the processor has bfloat16."""

    @pytest.fixture(autouse=True)
    def needs_bfloat16(self) -> None:
        from wsss_rt.engines.openvino import shared_core

        if "BF16" not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this processor has no bfloat16")

    def test_a_run_says_what_ran_twice(self, tmp_path: Path) -> None:
        """Of two images, one has a third whose score is the background's."""
        photos = tmp_path / "photos"
        photos.mkdir()
        Image.fromarray(blocks(0)).save(photos / "clear.png")
        Image.fromarray(tied()).save(photos / "tied.png")
        card = {"recommended": Recommended(background=0.4, tag_thresholds=(0.5,) * 3, provenance="tests")}
        model = write_color_model(tmp_path / "model.onnx", **card)
        masks = {}
        for precision in ("float32", "mixed"):
            done = label_folder(
                Job(
                    inputs=[str(photos)],
                    out=tmp_path / precision,
                    model=model,
                    options=LabelOptions(backend="openvino", precision=precision, skip_parity=True),
                )
            )
            assert done.labelled == 2
            masks[precision] = {
                path.name: np.asarray(Image.open(path)) for path in (tmp_path / precision / "masks").iterdir()
            }
        assert np.array_equal(masks["mixed"]["tied.png"], masks["float32"]["tied.png"])
        run = json.loads((tmp_path / "mixed" / "run.json").read_text())
        assert run["engine"]["precision"] == "mixed"
        records = [
            json.loads(line) for line in (tmp_path / "mixed" / "manifest.jsonl").read_text().splitlines()
        ]
        noted = {record["path"] for record in records if NOTE in record["notes"]}
        assert noted == {"tied.png"} and run["session"]["second_looks"] == 1
        assert run["session"]["second_looks_failed"] == 0

    def test_it_passes_the_gate_before_its_first_use(self, tmp_path: Path) -> None:
        from wsss_rt.engines import open_engine

        model = write_color_model(tmp_path / "model.onnx")
        engine = open_engine(model, precision="mixed", cache=False)
        assert engine.precision == "mixed" and engine.backend == "openvino"
        assert engine.choice["parity"]["passed"] and engine.choice["mixed"] == ["bfloat16", "float32"]
        engine.close()


def test_backends_without_bfloat16_are_refused(tmp_path: Path) -> None:
    from wsss_rt.engines import open_engine

    model = write_color_model(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="mixed does not run in onnxruntime"):
        open_engine(model, backend="onnxruntime", precision="mixed")
