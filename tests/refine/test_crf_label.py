"""`label --refine crf`: its settings, what it records, and what a bad image costs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.label_models import ColorEngine
from wsss_rt.errors import MissingExtraError, UsageError
from wsss_rt.label_config import label_options, merge_settings
from wsss_rt.labeler import Labeler
from wsss_rt.options import LabelOptions
from wsss_rt.refine import crf as crf_module
from wsss_rt.refine import open_refiner
from wsss_rt.refine.crf import CrfRefiner
from wsss_rt.refine.params import CrfParams
from wsss_rt.run_record import identity


def red_on_gray() -> NDArray[np.uint8]:
    image = np.full((64, 96, 3), 100, np.uint8)
    image[16:48, 8:40] = (250, 10, 10)
    return image


def test_refines_and_keeps_the_time() -> None:
    plain = Labeler(engine=ColorEngine()).label(red_on_gray())
    refined = Labeler(engine=ColorEngine(), refine="crf").label(red_on_gray())
    truth = np.zeros((64, 96), bool)
    truth[16:48, 8:40] = True
    assert refined.error is None and refined.mask is not None and plain.mask is not None

    def iou(mask: NDArray[np.uint8]) -> float:
        return float(((mask == 1) & truth).sum() / ((mask == 1) | truth).sum())

    assert iou(refined.mask) >= iou(plain.mask)
    assert refined.timings["refine"] > 0
    assert "refine" not in plain.timings


def test_an_image_without_a_class_is_background() -> None:
    result = Labeler(engine=ColorEngine(), refine="crf").label(np.full((40, 50, 3), 100, np.uint8))
    assert result.error is None and result.mask is not None
    assert not result.mask.any()


def test_scores_that_are_no_numbers_cost_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    labeler = Labeler(engine=ColorEngine(), refine="crf")
    merge = "wsss_rt.localize.merge_passes"
    with monkeypatch.context() as patched:
        patched.setattr(merge, lambda *a, size, **k: np.full((1, *size), np.nan, np.float32))
        result = labeler.label(red_on_gray())
    assert result.error is not None and result.error.code == "nonfinite_output"
    assert labeler.label(red_on_gray()).error is None


def test_settings_reach_the_parameters(tmp_path: Path) -> None:
    config = tmp_path / "label.toml"
    config.write_text('[label]\nrefine = "crf"\ncrf-preset = "segmentation"\ncrf-spatial = [2, 1.5]\n')
    flags = {"crf-bilateral": "60,10,8", "crf-iterations": 4, "crf-alpha": 2.0}
    options = label_options(merge_settings(flags, config))
    assert options.crf == CrfParams(2, 1.5, 60, 10, 8, 4, 2.0)
    pair = label_options(merge_settings({"refine": "crf", "crf-preset": "psa", "crf-alpha": "1,12"}, None))
    assert (pair.crf.alpha, pair.crf.high_alpha) == (1, 12)
    untouched = label_options(merge_settings({"refine": "crf", "crf-preset": "segmentation"}, None))
    assert untouched.crf == CrfParams(4, 3, 83, 5, 3, 10)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"crf-iterations": 5}, "add --refine crf"),
        ({"refine": "crf", "crf-preset": "mctforme"}, "'mctformer'"),
        ({"refine": "crf", "crf-spatial": "3"}, "SXY,COMPAT"),
        ({"refine": "crf", "crf-bilateral": "80,0,10"}, "crf-bilateral-srgb"),
        ({"refine": "crf", "crf-iterations": -1}, "0..1000"),
        ({"refine": "crf", "crf-alpha": "12,1"}, "LOW < HIGH"),
        ({"refine": "crf", "crf-alpha": "1,2,3"}, "LOW,HIGH"),
        ({"refine": "crf", "crf-stop": 1.5}, "share"),
        ({"refine": "crf", "crf-memory": 0.0}, "gigabytes"),
    ],
)
def test_wrong_settings_say_what_is_right(flags: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        label_options(merge_settings(flags, None))


def test_the_record_tells_parameters_of_runs_that_had_them() -> None:
    engine = ColorEngine()
    keys = {"backend": "b", "device": "d", "precision": "p"}

    def recorded(**settings: object) -> dict:
        options = Labeler(engine=engine, **settings).options
        return json.loads(json.dumps(identity(engine.card, options, tags="given", engine=keys)))

    assert "crf" not in recorded()
    assert recorded(refine="crf")["crf"]["bilateral_sxy"] == 83
    assert recorded(refine="crf") != recorded(refine="crf", crf=CrfParams(iterations=3))


def test_alpha_makes_the_background_from_the_classes() -> None:
    image = red_on_gray()
    scores = np.random.default_rng(0).random((3, 64, 96), np.float32)
    made = scores.copy()
    made[0] = (1 - scores[1:].max(axis=0)) ** 4
    kept = scores.copy()
    found = CrfRefiner(CrfParams(alpha=4, iterations=2))(image, scores)
    wanted = CrfRefiner(CrfParams(iterations=2))(image, made)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    assert found.sure_background is None
    np.testing.assert_array_equal(scores, kept)


def test_two_alphas_label_what_they_agree_on() -> None:
    image = red_on_gray()
    crf = CrfParams(alpha=1, high_alpha=12)
    result = Labeler(engine=ColorEngine(), refine="crf", crf=crf).label(image)
    assert result.error is None and result.mask is not None
    low, high = (
        Labeler(engine=ColorEngine(), refine="crf", crf=CrfParams(alpha=alpha)).label(image).mask
        for alpha in (1, 12)
    )
    assert low is not None and high is not None
    wanted = np.where(low == 0, 255, low)
    wanted[high == 0] = 0
    np.testing.assert_array_equal(result.mask, wanted)
    assert set(np.unique(result.mask)) >= {0, 1}


def test_an_image_beyond_the_memory_limit_costs_one_record() -> None:
    labeler = Labeler(engine=ColorEngine(), refine="crf", crf_memory=5e-4)
    large = labeler.label(red_on_gray())
    assert large.error is not None and large.error.code == "out_of_memory"
    assert "--crf-memory" in large.error.message
    assert labeler.label(red_on_gray()[:16, :16]).error is None


def test_pydensecrf_is_not_asked_for_a_limit_that_it_lacks() -> None:
    pytest.importorskip("pydensecrf")
    CrfRefiner(backend="pydensecrf")
    with pytest.raises(UsageError, match="leave out --crf-memory"):
        CrfRefiner(backend="pydensecrf", memory=1.0)


def test_backends_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'numba'"):
        open_refiner(LabelOptions(refine="crf", crf_backend="numbas"))
    with pytest.raises(UsageError, match="'crf'"):
        open_refiner(LabelOptions(refine="crff"))
    monkeypatch.setattr(crf_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="crf-reference"):
        open_refiner(LabelOptions(refine="crf", crf_backend="pydensecrf"))
    monkeypatch.setattr(crf_module.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UsageError, match="no early stop"):
        open_refiner(LabelOptions(refine="crf", crf=CrfParams(stop=0.01), crf_backend="pydensecrf"))


def test_the_first_compilation_is_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    import numba

    from wsss_rt.jit import compiling_told

    # not one of ours: those may be on the disk already
    twice = numba.njit(lambda x: x + x)
    told: list[str] = []
    for value in (1, 2, 1.5):
        with compiling_told(lambda: told.append("told")):
            twice(value)
    # numba tells integers from floats; nothing is said where nothing is compiled
    assert told == ["told", "told"]
    with caplog.at_level(logging.WARNING):
        CrfRefiner().warm_up(told.append)
    assert told[2:] in ([], [crf_module.COMPILING])
