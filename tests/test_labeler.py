"""The pipeline from files to results."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.label_models import ColorEngine, blocks, color_card
from tests.nasty import jpeg, stored_turned
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.labeler import Labeler
from wsss_rt.model_card import Recommended
from wsss_rt.pipeline import Stages, run_stages
from wsss_rt.results import Result
from wsss_rt.tags import TagTable


def write_folder(folder: Path, count: int, *, height: int = 64, width: int = 96) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        path = folder / f"{index:03d}.png"
        Image.fromarray(blocks(index, height=height, width=width)).save(path)
        paths.append(path)
    return paths


def outcome(results: Iterator[Result]) -> dict[str, bytes | str]:
    return {
        result.relative: result.png if result.png is not None else str(result.error) for result in results
    }


def test_finds_the_rectangles_where_they_are() -> None:
    image = np.full((64, 96, 3), 100, np.uint8)
    image[16:48, 8:40] = (250, 10, 10)
    result = Labeler(engine=ColorEngine()).label(image)
    assert result.error is None
    assert result.tags == ("red",)
    assert result.tag_source == "predicted"
    assert result.mask is not None
    truth = np.zeros((64, 96), bool)
    truth[16:48, 8:40] = True
    found = result.mask == 1
    assert (found & truth).sum() / (found | truth).sum() > 0.85
    assert set(np.unique(result.mask)) == {0, 1}
    assert 0 < (result.confidence or 0) <= 1
    assert result.scores["red"] > 0.5 > result.scores["blue"]
    assert result.size == (96, 64)


def test_given_tags_go_before_predicted_ones() -> None:
    labeler = Labeler(engine=ColorEngine())
    image = np.full((64, 96, 3), 100, np.uint8)
    image[:32] = (250, 10, 10)
    image[32:] = (10, 10, 250)
    assert labeler.label(image).tags == ("red", "blue")
    result = labeler.label(image, tags=["blue"])
    assert (result.tags, result.tag_source) == (("blue",), "given")
    assert result.mask is not None
    assert set(np.unique(result.mask)) <= {0, 3}
    with pytest.raises(UsageError, match="green"):
        labeler.label(image, tags=["gren"])


def test_flags_tell_what_to_look_at() -> None:
    labeler = Labeler(engine=ColorEngine())
    gray = np.full((64, 96, 3), 100, np.uint8)
    nothing = labeler.label(gray)
    assert nothing.flags == ("no_class_found",)
    assert nothing.confidence == 0.0
    assert nothing.mask is not None
    assert not nothing.mask.any()
    assert "no_tags_given" in labeler.label(gray, tags=[]).flags
    red = np.full((64, 96, 3), 5, np.uint8)
    red[..., 0] = 255
    assert "tag_without_evidence" in labeler.label(red, tags=["green"]).flags


@pytest.mark.parametrize("orientation", range(1, 9))
def test_mask_lies_over_the_stored_raster(tmp_path: Path, orientation: int) -> None:
    upright = np.full((64, 96, 3), 100, np.uint8)
    upright[:32, :32] = (250, 10, 10)
    path = tmp_path / "turned.jpg"
    path.write_bytes(jpeg(stored_turned(upright, orientation), orientation=orientation))
    labeler = Labeler(engine=ColorEngine())
    result, reference = labeler.label(path), labeler.label(upright)
    assert result.orientation == orientation
    assert result.mask is not None and reference.mask is not None
    saved = tmp_path / "mask.png"
    result.save(saved)
    with Image.open(saved) as mask, Image.open(path) as image:
        assert mask.size == image.size
        assert mask.mode == "P"
        agreement = np.asarray(mask) == stored_turned(reference.mask, orientation)
    # the JPEG moves a border pixel here and there
    assert agreement.mean() > 0.98


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_bad_image_does_not_touch_its_batch(tmp_path: Path, batch: int) -> None:
    paths = write_folder(tmp_path / "images", 7)
    clean = outcome(Labeler(engine=ColorEngine()).stream(tmp_path / "images"))
    paths[2].write_bytes(paths[2].read_bytes()[:200])
    engine = ColorEngine()
    mixed = outcome(Labeler(engine=engine, batch=batch).stream(tmp_path / "images"))
    assert list(mixed) == list(clean)
    assert str(mixed.pop("002.png")).startswith("truncated")
    clean.pop("002.png")
    assert mixed == clean
    assert max(engine.batches) == (2 * batch if batch < 4 else 6)


def test_sizes_may_mix_in_a_batch(tmp_path: Path) -> None:
    write_folder(tmp_path / "images" / "a", 3)
    write_folder(tmp_path / "images" / "b", 3, height=80, width=56)
    alone = outcome(Labeler(engine=ColorEngine()).stream(tmp_path / "images"))
    together = outcome(Labeler(engine=ColorEngine(), batch=6).stream(tmp_path / "images"))
    assert alone == together


def test_an_engine_that_runs_out_of_memory_on_a_batch_gets_one_image(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", 5)
    expected = outcome(Labeler(engine=ColorEngine()).stream(tmp_path / "images"))
    assert outcome(Labeler(engine=ColorEngine(max_batch=2), batch=4).stream(tmp_path / "images")) == expected
    starved = Labeler(engine=ColorEngine(max_batch=1), batch=4).stream(tmp_path / "images")
    assert {result.error.code for result in starved if result.error} == {"out_of_memory"}


def test_nan_from_the_model_is_an_error_of_that_image(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", 4)
    engine = ColorEngine()
    first = blocks(1)[0, 0].astype(np.float32) / 255
    engine.poison = (first - np.float32(0.5)) / np.float32(0.25)
    codes = [
        result.error.code if result.error else ""
        for result in Labeler(engine=engine, batch=4).stream(tmp_path / "images")
    ]
    assert codes == ["", "nonfinite_output", "", ""]


def test_an_image_without_tags_is_an_error_and_keeps_the_others(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", 3)
    table = TagTable(("red", "green", "blue"), {"000.png": ("red",), "002.png": ("blue", "red")})
    first, second, third = Labeler(engine=ColorEngine(), tags=table).stream(tmp_path / "images")
    assert first.tags == ("red",)
    assert second.error is not None and second.error.code == "no_tags"
    assert third.tags == ("red", "blue")


def test_scales_and_flip_come_from_the_card(tmp_path: Path) -> None:
    card = color_card(recommended=Recommended(scales=(1.0, 0.5), flip=False, background=0.2))
    engine = ColorEngine(card=card)
    labeler = Labeler(engine=engine)
    labeler.label(blocks())
    assert engine.batches == [1, 1]
    assert labeler.options.background == 0.2
    engine.batches.clear()
    Labeler(engine=engine, scales=(1.0,), flip=True).label(blocks())
    assert engine.batches == [2]


def test_ignore_band_marks_doubtful_pixels() -> None:
    image = np.full((64, 96, 3), 100, np.uint8)
    image[16:48, 8:40] = (250, 10, 10)
    result = Labeler(engine=ColorEngine(), ignore_band=(0.3, 0.6)).label(image)
    assert result.mask is not None
    assert set(np.unique(result.mask)) == {0, 1, 255}


def test_maps_are_kept_on_request_in_the_stored_raster(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    path.write_bytes(jpeg(stored_turned(blocks(), 6), orientation=6))
    result = Labeler(engine=ColorEngine(), keep_maps=True, keep_image=True).label(path)
    assert result.mask is not None and result.maps is not None and result.image is not None
    assert result.maps.shape == (len(result.tags), *result.mask.shape)
    assert result.image.shape[:2] == result.mask.shape[::-1]
    assert result.overlay().shape[1] == result.image.shape[1]


def test_unknown_settings_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="'background'"):
        Labeler(engine=ColorEngine(), backgroud=0.3)
    with pytest.raises(UsageError, match="'crf'"):
        Labeler(engine=ColorEngine(), refine="crff")
    with pytest.raises(UsageError, match="0 <= LO < HI"):
        Labeler(engine=ColorEngine(), ignore_band=(0.6, 0.3))


def test_stream_takes_images_only_as_fast_as_results_are_read() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for index in range(1000):
            taken += 1
            yield index

    stages = Stages(before=lambda item: [item], middle=lambda works: None, after=lambda work: work[0])
    outputs = run_stages(items(), stages, workers=2, batch=2)
    assert [next(outputs) for _ in range(5)] == [0, 1, 2, 3, 4]
    # five read, at most workers + batch in each of the two queues, and one group between them
    assert taken <= 5 + 2 * 4 + 2 + 1
    outputs.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("wsss-rt") for thread in threading.enumerate())


@pytest.mark.parametrize("stage", ["items", "before", "middle", "after"])
def test_an_exception_in_any_stage_arrives_after_earlier_results(stage: str) -> None:
    def fail_at_three(value: int, here: str) -> None:
        if here == stage and value == 3:
            raise WsssError(f"{here} broke")

    def items() -> Iterator[int]:
        for index in range(50):
            fail_at_three(index, "items")
            yield index

    def before(item: int) -> int:
        fail_at_three(item, "before")
        return item

    def middle(works: object) -> None:
        for work in works:  # type: ignore[attr-defined]
            fail_at_three(work, "middle")

    def after(work: int) -> int:
        fail_at_three(work, "after")
        return work

    seen = []
    with pytest.raises(WsssError, match=f"{stage} broke"):
        seen.extend(run_stages(items(), Stages(before, middle, after), workers=2))
    assert seen == [0, 1, 2]
    assert not any(thread.name.startswith("wsss-rt") for thread in threading.enumerate())


def test_stop_finishes_what_is_in_flight() -> None:
    stop = threading.Event()
    seen = []
    stages = Stages(before=lambda item: item, middle=lambda works: None, after=lambda work: work)
    for value in run_stages(iter(range(10_000)), stages, workers=2, stop=stop):
        seen.append(value)
        if value == 10:
            stop.set()
    assert seen == list(range(len(seen)))
    assert 11 <= len(seen) < 40
