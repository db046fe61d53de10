"""From class scores to masks: windows and passes, against plain arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.label_models import BIAS, COLORS, ColorEngine, blocks, color_card
from wsss_rt.engines.base import EngineOutput
from wsss_rt.engines.windows import WindowedEngine, windowed
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.labeler import Labeler
from wsss_rt.model_card import InputSpec, ModelCard, Recommended
from wsss_rt.segment import merge_passes, planes_of, split_background, windows


class ColorSegmenter:
    """Finds red, green and blue pixel by pixel; gray is background.

    Attributes:
        shapes: of the inputs that it was called with.
    """

    backend, device, precision = "fake", "cpu", "float32"

    def __init__(self, *, background: bool = True, **spec: Any) -> None:
        self.card: ModelCard = color_card(
            kind="segmenter",
            has_background=background,
            input=InputSpec(mean=(0.5,) * 3, std=(0.25,) * 3, patch=8, **spec),
            recommended=Recommended(flip=False, provenance="made for tests"),
        )
        self.choice: dict[str, Any] = {}
        self.shapes: list[tuple[int, ...]] = []

    def infer(self, images: NDArray[np.float32]) -> EngineOutput:
        self.shapes.append(images.shape)
        evidence = 1.5 * images - 0.5 * images.sum(axis=1, keepdims=True) - np.float32(BIAS)
        classes = 1 / (1 + np.exp(-evidence))
        maps = classes
        if self.card.has_background:
            maps = np.concatenate((1 - classes.max(axis=1, keepdims=True), classes), axis=1)
        return EngineOutput(evidence.max(axis=(2, 3)), maps.astype(np.float32))

    def close(self) -> None:
        """Nothing to free."""


def cover(size: tuple[int, int], side: int, stride: int) -> NDArray[np.int64]:
    counts = np.zeros(size, np.int64)
    for rows, columns in windows(size, side, stride):
        counts[rows, columns] += 1
    return counts


def test_windows_lie_where_the_official_code_puts_them() -> None:
    # mmsegmentation: ceil((length - side) / stride) + 1 in a row, the last one moved back inside
    assert [(r.start, c.start) for r, c in windows((160, 224), 128, 96)] == [
        (0, 0), (0, 96), (32, 0), (32, 96),
    ]  # fmt: skip
    assert list(windows((640, 640), 640, 608)) == [(slice(0, 640), slice(0, 640))]
    assert [c.start for _, c in windows((640, 641), 640, 608)] == [0, 1]
    for size, side, stride in (((37, 90), 40, 13), ((40, 40), 40, 40), ((200, 41), 40, 27)):
        assert cover(size, side, stride).min() >= 1
        assert {(r.stop - r.start, c.stop - c.start) for r, c in windows(size, side, stride)} == {
            (min(side, size[0]), min(side, size[1]))
        }


def test_a_windowed_engine_averages_what_windows_say() -> None:
    class Position:
        """Says which window it was called for."""

        backend, device, precision = "fake", "cpu", "float32"

        def __init__(self) -> None:
            self.card, self.choice, self.calls = color_card(), {"picked": "fake"}, 0

        def infer(self, images: NDArray[np.float32]) -> EngineOutput:
            self.calls += 1
            maps = np.full((len(images), 2, *images.shape[2:]), self.calls, np.float32)
            return EngineOutput(np.full((len(images), 2), -self.calls, np.float32), maps)

        def close(self) -> None:
            self.calls = -1

    inner = Position()
    engine = WindowedEngine(inner, window=4, stride=3)
    found = engine.infer(np.zeros((2, 3, 4, 6), np.float32))
    assert inner.calls == 2
    # columns 0, 1 belong to the first window alone, 2 and 3 to both
    assert np.array_equal(found.maps[1, 1, 0], [1, 1, 1.5, 1.5, 2, 2])
    assert np.array_equal(found.scores, np.full((2, 2), -1))
    assert engine.choice == {"picked": "fake"}
    engine.close()
    assert inner.calls == -1
    with pytest.raises(ValueError, match="stride"):
        WindowedEngine(inner, window=4, stride=5)


def test_one_pass_keeps_its_scores_and_several_meet_as_officially() -> None:
    random = np.random.default_rng(0)
    first = random.random((1, 4, 6, 8), np.float32) * 2
    assert np.array_equal(merge_passes([first], size=(6, 8)), first[0])
    pair = random.random((2, 4, 6, 8), np.float32) * 2
    views = [first[0], pair[0], pair[1, :, :, ::-1]]
    softmaxes = [np.exp(view) / np.exp(view).sum(axis=0) for view in views]
    expected = np.mean(softmaxes, axis=0)
    merged = merge_passes([first, pair], size=(6, 8))
    assert np.array_equal(merged.argmax(axis=0), expected.argmax(axis=0))
    # the same up to a plane that all classes share
    assert np.allclose(
        np.exp(merged) / np.exp(merged).sum(axis=0), expected / expected.sum(axis=0), atol=1e-6
    )
    some = merge_passes([first, pair], size=(6, 8), planes=[0, 2])
    assert np.allclose(some, merged[[0, 2]])
    # and three times the same pass is that pass
    assert np.allclose(merge_passes([first, first, first], size=(6, 8)), first[0], atol=1e-6)


def test_background_wins_ties_and_may_be_missing() -> None:
    assert planes_of((0, 2), has_background=True) == [0, 1, 3]
    assert planes_of((0, 2), has_background=False) == [0, 2]
    scores = np.ones((2, 1, 1), np.float32)
    background, maps = split_background(scores, has_background=True)
    assert isinstance(background, np.ndarray) and maps.shape == (1, 1, 1)
    background, maps = split_background(scores, has_background=False)
    assert background == -np.inf and len(maps) == 2


def test_a_segmenter_labels_without_tags() -> None:
    labeler = Labeler(engine=ColorSegmenter())
    image = np.full((61, 97, 3), 100, np.uint8)
    image[16:48, 8:40] = (250, 10, 10)
    image[:10, 50:] = (10, 10, 250)
    result = labeler.label(image)
    assert result.error is None and result.mask is not None
    truth = np.zeros((61, 97), np.uint8)
    truth[16:48, 8:40], truth[:10, 50:] = 1, 3
    assert np.array_equal(result.mask, truth)
    assert (result.tags, result.tag_source, result.flags) == (("red", "blue"), "predicted", ())
    assert set(result.class_scores) == {"red", "blue"} and set(result.scores) == set(COLORS)
    assert 0 < (result.confidence or 0) <= 1
    nothing = labeler.label(np.full((61, 97, 3), 100, np.uint8))
    assert nothing.flags == ("no_class_found",) and nothing.tags == ()


def test_given_tags_keep_other_classes_out() -> None:
    image = np.full((64, 96, 3), 100, np.uint8)
    image[:32], image[32:] = (250, 10, 10), (10, 10, 250)
    result = Labeler(engine=ColorSegmenter()).label(image, tags=["blue"])
    assert result.mask is not None
    assert set(np.unique(result.mask)) <= {0, 3} and (result.mask[32:] == 3).all()
    assert (result.tags, result.tag_source) == (("blue",), "given")


def test_windows_flips_and_scales_leave_a_pixelwise_model_as_it_is() -> None:
    image = blocks(3, height=70, width=100)
    whole = Labeler(engine=ColorSegmenter()).label(image)
    engine = ColorSegmenter(window=32, stride=20)
    cut = Labeler(engine=engine).label(image)
    assert whole.png == cut.png and len(engine.shapes) > 4
    assert {shape[2:] for shape in engine.shapes} == {(32, 32)}
    flipped = Labeler(engine=ColorSegmenter(), flip=True).label(image)
    assert whole.png == flipped.png


def test_without_a_has_background_every_pixel_has_a_class() -> None:
    result = Labeler(engine=ColorSegmenter(background=False)).label(blocks(1))
    assert result.mask is not None and result.mask.min() >= 1
    assert np.isfinite(result.confidence or 0)


def test_kept_maps_are_those_of_the_tags() -> None:
    result = Labeler(engine=ColorSegmenter(), keep_maps=True).label(blocks(0))
    assert result.maps is not None and result.mask is not None
    assert result.maps.shape == (len(result.tags), *result.mask.shape)


def test_a_refiner_gets_scores_between_0_and_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from wsss_rt import refine
    from wsss_rt.refine.refined import Refined

    seen: list[NDArray[np.float32]] = []

    def swallow(image: NDArray[np.uint8], scores: NDArray[np.float32]) -> Refined:
        seen.append(scores)
        return Refined(scores)

    monkeypatch.setitem(refine.REFINERS, "swallow", lambda options: swallow)
    plain = Labeler(engine=ColorSegmenter()).label(blocks(2))
    refined = Labeler(engine=ColorSegmenter(), refine="swallow").label(blocks(2))
    assert seen[0].shape[0] == 1 + len(COLORS) and 0 <= seen[0].min() <= seen[0].max() <= 1
    assert refined.png == plain.png
    result = Labeler(engine=ColorSegmenter(background=False), refine="swallow").label(blocks(2))
    assert result.mask is not None and result.mask.min() >= 1


def test_what_a_segmenter_has_no_use_for_is_refused() -> None:
    with pytest.raises(UsageError, match="background"):
        Labeler(engine=ColorSegmenter(), background=0.3)
    engine = ColorEngine(card=color_card(kind="painter"))
    with pytest.raises(WsssError, match="painter"):
        Labeler(engine=engine)


def test_only_cards_with_a_window_are_cut() -> None:
    engine = ColorSegmenter()
    assert windowed(engine) is engine
    engine.card = replace(engine.card, input=replace(engine.card.input, window=32))
    once = windowed(engine)
    assert isinstance(once, WindowedEngine) and windowed(once) is once


def test_the_command_labels_a_folder_with_a_segmenter(tmp_path: Path) -> None:
    """Through a real graph and a real engine; the same outputs as a localizer's, and resumable."""
    onnx = pytest.importorskip("onnx")
    from PIL import Image

    from tests.label_models import write_color_model
    from wsss_rt.label_plan import Job
    from wsss_rt.label_run import label_folder
    from wsss_rt.model_card import CARD_KEY, SEAL_KEY, seal

    path = write_color_model(tmp_path / "tokens.onnx")
    model = onnx.load(str(path))
    del model.metadata_props[:]
    assert CARD_KEY and SEAL_KEY
    # tokens back to pixels, with a constant plane in front for the background
    helper = onnx.helper
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([1, 1, 8, 8], np.float32), "factors")
    )
    for node in model.graph.node:
        node.output[:] = ["tokens" if name == "maps" else name for name in node.output]
    model.graph.node.extend(
        [
            helper.make_node("Resize", ["tokens", "", "factors"], ["grown"], mode="nearest"),
            helper.make_node("ReduceMax", ["grown"], ["best"], axes=[1], keepdims=1),
            helper.make_node("Sub", ["quarter", "best"], ["plane"]),
            helper.make_node("Concat", ["plane", "grown"], ["maps"], axis=1),
        ]
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.25), "quarter"))
    maps = model.graph.output[1].type.tensor_type.shape.dim
    maps[1].dim_value, maps[2].dim_param, maps[3].dim_param = 4, "height", "width"
    card = color_card(
        kind="segmenter", has_background=True, recommended=Recommended(flip=False, provenance="tests")
    )
    path.write_bytes(seal(model.SerializeToString(), card))
    for index in range(3):
        Image.fromarray(blocks(index)).save(tmp_path / f"{index}.png")
    job = Job([str(tmp_path / f"{index}.png") for index in range(3)], tmp_path / "out", model=path)
    assert label_folder(job).labelled == 3
    assert {entry.name for entry in (tmp_path / "out").iterdir()} >= {
        "masks", "annotations.coco.json", "report.html", "manifest.jsonl", "run.json",
    }  # fmt: skip
    with Image.open(tmp_path / "out" / "masks" / "0.png") as mask:
        assert set(np.unique(np.asarray(mask))) <= {0, 1, 2, 3} and np.asarray(mask).any()
    assert label_folder(job).resumed == 3
