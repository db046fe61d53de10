"""`label --refine walk`: a real affinity model beside a real localizer, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.affinity_model import affinity_card, write_affinity_model
from tests.cli.label_runs import Cli
from tests.label_models import ColorEngine, color_card, write_color_model
from tests.packages import write_package
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.label_config import label_options, merge_settings
from wsss_rt.labeler import Labeler
from wsss_rt.model_card import InputSpec, seal
from wsss_rt.model_package import BuiltFor
from wsss_rt.options import LabelOptions
from wsss_rt.refine import open_refiner
from wsss_rt.refine.chain import ChainRefiner
from wsss_rt.refine.refined import Refined
from wsss_rt.refine.walk import WalkRefiner
from wsss_rt.refine.walk_params import WalkParams
from wsss_rt.run_record import identity


@pytest.fixture(scope="module")
def affinity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real affinity model."""
    yield write_affinity_model(tmp_path_factory.mktemp("affinity") / "affinity.onnx")


def half_red() -> NDArray[np.uint8]:
    """Red on the left, gray on the right."""
    image = np.full((61, 160, 3), 100, np.uint8)
    image[:, :80] = (250, 10, 10)
    return image


def seeds() -> NDArray[np.float32]:
    """Background everywhere, and a seed in the red half."""
    scores = np.zeros((2, 61, 160), np.float32)
    scores[0] = 0.2
    scores[1, 16:40, 24:48] = 1
    return scores


def test_a_seed_spreads_over_its_colour_and_stops_at_its_end(affinity: Path) -> None:
    refined = WalkRefiner(affinity, backend="onnxruntime")(half_red(), seeds()).scores
    assert refined.shape == (2, 61, 160) and refined.dtype == np.float32
    # below the corner that PSA's pairs leave out
    half = (slice(16, 40), slice(4, 72))
    assert refined[1][half].min() > 0.08 and refined[1, :, 96:].max() < 0.01
    # one step spreads less than many
    short = WalkRefiner(affinity, WalkParams(steps=1), backend="onnxruntime")(half_red(), seeds()).scores
    assert np.ptp(short[1][half]) > 3 * np.ptp(refined[1][half])


def test_a_large_image_walks_at_the_size_that_the_model_may_see(tmp_path: Path) -> None:
    spec = affinity_card().input
    small = InputSpec(spec.mean, spec.std, patch=spec.patch, max_pixels=61 * 160)
    path = write_affinity_model(tmp_path / "small.onnx", input=small)
    image, scores = (
        half_red().repeat(4, axis=0).repeat(4, axis=1),
        seeds().repeat(4, axis=1).repeat(4, axis=2),
    )
    refined = WalkRefiner(path, backend="onnxruntime")(image, scores).scores
    assert refined.shape == scores.shape
    plain = WalkRefiner(path, backend="onnxruntime")(half_red(), seeds()).scores
    # what lies in the middle of the small pixels
    assert np.abs(refined[:, 2::4, 2::4] - plain).mean() < 0.02


def test_scores_that_are_no_numbers_and_tiny_images_cost_at_most_a_record(affinity: Path) -> None:
    labeler = Labeler(engine=ColorEngine(), refine="walk", affinity=str(affinity), backend="onnxruntime")
    assert labeler.label(np.full((1, 3, 3), 100, np.uint8)).error is None
    result = labeler.label(half_red())
    assert result.error is None and result.mask is not None and result.timings["refine"] > 0
    assert (result.mask[:, :72] == 1).all() and not result.mask[:, 96:].any()


def test_the_command_writes_refined_masks_and_says_what_with(
    affinity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(2):
        Image.fromarray(half_red()).save(tmp_path / "in" / f"{index}.png")
    write_color_model(tmp_path / "color.onnx")
    label = Cli(tmp_path, monkeypatch, capsys)
    words = ("label", "in", "--out", "out", "--model", "color.onnx", "--backend", "onnxruntime", "--quiet")
    ended = label(*words, "--refine", "walk", "--affinity", affinity, "--walk-steps", "16")
    assert ended.code == 0, ended.err
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "0.png"))
    assert (mask[:, :72] == 1).all() and not mask[:, 96:].any()
    recorded = json.loads((tmp_path / "out" / "run.json").read_text())
    assert '"steps": 16' in json.dumps(recorded) and "affinity" in json.dumps(recorded)
    # another affinity or another walk is another run
    other = label(*words, "--refine", "walk", "--affinity", affinity, "--walk-steps", "8")
    assert other.code != 0 and "Traceback" not in other.err
    lacking = label("label", "in", "--out", "new", "--model", "color.onnx", "--refine", "walk")
    assert lacking.code == 2 and "--affinity" in lacking.err and not (tmp_path / "new").exists()
    swapped = label("label", "in", "--out", "new", "--model", affinity)
    assert swapped.code == 1 and "affinity" in swapped.err


def test_a_localizer_is_no_affinity_model_and_a_damaged_file_is_told(affinity: Path, tmp_path: Path) -> None:
    localizer = tmp_path / "localizer.onnx"
    localizer.write_bytes(seal(b"", color_card()))
    with pytest.raises(WsssError, match="is a localizer"):
        WalkRefiner(localizer)
    damaged = tmp_path / "damaged.onnx"
    content = bytearray(affinity.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(WsssError, match="damaged"):
        WalkRefiner(damaged)
    with pytest.raises(UsageError, match="walk-radius 7 is more than 5"):
        WalkRefiner(affinity, WalkParams(radius=7))


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("aotinductor", "auto"), ("aotinductor", "float16"), ("onnxruntime", "int8")],
    ids=" ".join,
)
def test_an_affinity_model_runs_beside_a_localizer_of_another_kind_of_file(
    affinity: Path, backend: str, precision: str
) -> None:
    """What a package, or a quantised file, of a localizer was asked for is not what an ONNX file can do."""
    told: list[str] = []
    walk = WalkRefiner(affinity, backend=backend, precision=precision)
    walk.warm_up(told.append)
    (line,) = told
    assert "affinity model runs in onnxruntime float32" in line and f"run in {backend}" in line
    assert "auto" not in line
    plain = WalkRefiner(affinity, backend="onnxruntime")
    plain.warm_up(told.append)
    assert len(told) == 1
    np.testing.assert_array_equal(walk(half_red(), seeds()).scores, plain(half_red(), seeds()).scores)


def test_a_package_of_an_affinity_model_says_itself_what_runs_it(tmp_path: Path) -> None:
    built = BuiltFor(device="cpu", torch="2.14.1", platform="linux x86_64", name="a processor")
    path = write_package(tmp_path / "a.pt2", built, card=affinity_card(precision="bfloat16"))
    for asked in (("openvino", "float32"), ("auto", "bfloat16")):
        walk = WalkRefiner(path, backend=asked[0], precision=asked[1])
        # its code is none: what is tried is what runs packages
        with pytest.raises(WsssError) as caught:
            walk.warm_up(print)
        assert "runs ONNX" not in str(caught.value) and "compiled to compute" not in str(caught.value)


def test_settings_reach_the_parameters(tmp_path: Path) -> None:
    config = tmp_path / "label.toml"
    config.write_text('[label]\nrefine = "walk"\nwalk-preset = "psa"\naffinity = "a.onnx"\nwalk-beta = 4\n')
    options = label_options(merge_settings({"walk-steps": 32}, config))
    assert options.walk == WalkParams(beta=4, steps=32, alpha=16) and options.affinity == "a.onnx"


class Halving:
    """Stands for a CRF: halves the class, and is sure of the background on the right."""

    def warm_up(self, announce: Callable[[str], None]) -> None:
        announce("halving")

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> Refined:
        halved = scores.copy()
        halved[1] /= 2
        return Refined(halved, np.arange(image.shape[1]) >= np.full((image.shape[0], 1), 100))


def test_refiners_run_one_after_another_and_keep_what_is_sure(affinity: Path) -> None:
    walk = WalkRefiner(affinity, backend="onnxruntime")
    chain = ChainRefiner([Halving(), walk])
    told: list[str] = []
    chain.warm_up(told.append)
    assert told == ["halving"]
    refined = chain(half_red(), seeds())
    np.testing.assert_allclose(refined.scores[1], walk(half_red(), seeds()).scores[1] / 2, atol=1e-6)
    assert refined.sure_background is not None and refined.sure_background[:, 100:].all()


def test_crf_and_walk_label_together_in_the_order_of_their_names(affinity: Path) -> None:
    given = {"affinity": str(affinity), "backend": "onnxruntime"}
    image = half_red()
    refined = open_refiner(LabelOptions(refine="crf+walk", **given))
    assert refined is not None
    crf = open_refiner(LabelOptions(refine="crf"))
    assert crf is not None
    walk = WalkRefiner(affinity, backend="onnxruntime")
    after = walk(image, crf(image, seeds()).scores).scores
    np.testing.assert_array_equal(refined(image, seeds()).scores, after)
    mask = Labeler(engine=ColorEngine(), refine="crf+walk", **given).label(image).mask
    assert mask is not None and (mask[:, :72] == 1).all() and not mask[:, 96:].any()


def test_each_of_two_refiners_has_its_settings() -> None:
    flags = {"refine": "crf+walk", "crf-iterations": 3, "walk-steps": 5, "affinity": "a.onnx"}
    options = label_options(merge_settings(flags, None))
    assert options.crf.iterations == 3 and options.walk.steps == 5
    for refine in ("crf+crf", "none+crf", "crf+", "crf+wolk"):
        with pytest.raises(UsageError):
            open_refiner(LabelOptions(refine=refine))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"walk-steps": 5}, "add --refine walk"),
        ({"affinity": "a.onnx"}, "add --refine walk"),
        ({"refine": "crf", "affinity": "a.onnx"}, "add --refine walk"),
        ({"refine": "walk", "walk-preset": "pse"}, "'psa'"),
        ({"refine": "walk", "walk-beta": 0}, "walk-beta"),
    ],
)
def test_wrong_settings_say_what_is_right(flags: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        label_options(merge_settings(flags, None))


def test_the_record_tells_parameters_and_model_of_runs_that_had_them(affinity: Path) -> None:
    engine = ColorEngine()
    keys = {"backend": "b", "device": "d", "precision": "p"}

    def recorded(**settings: object) -> dict:
        options = Labeler(engine=engine, **settings).options
        return json.loads(json.dumps(identity(engine.card, options, tags="given", engine=keys)))

    assert "walk" not in recorded()
    walk = recorded(refine="walk", affinity=str(affinity))
    assert walk["walk"]["steps"] == 64 and len(walk["walk"]["affinity"]) == 64
    both = recorded(refine="crf+walk", affinity=str(affinity))
    assert both["walk"] == walk["walk"] and both["crf"]["iterations"] == 10 and "crf" not in walk
    assert walk != recorded(refine="walk", affinity=str(affinity), walk=WalkParams(steps=8))
