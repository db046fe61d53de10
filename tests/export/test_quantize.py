"""int8: which layers are quantised, what the gate refuses, and that the file runs in both engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.cli.label_runs import Cli
from tests.label_models import BIAS, PATCH, blocks, color_card
from wsss_rt.engines import open_engine
from wsss_rt.errors import UsageError
from wsss_rt.io.atomic import write_atomic
from wsss_rt.model_card import read_card, seal

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

HARMLESS, HARMFUL = "mix", "read"


def write_model(path: Path, *, half: bool = False) -> Path:
    """The color model with a channel of ten thousands beside its colors, which the second layer leaves out.

    In 256 steps of that range the colors are gone: the second layer must stay in float.
    """
    from onnx import TensorProto, helper, numpy_helper

    mix = np.eye(4, 3, dtype=np.float32)[:, :, None, None]
    read = np.full((3, 4, 1, 1), -0.5, np.float32)
    read[:, 3], read[range(3), range(3)] = 0, 1
    stored = np.float16 if half else np.float32
    tensors = {
        "mix.weight": mix,
        "mix.bias": np.asarray([0, 0, 0, 1e4], np.float32),
        "read.weight": read.astype(stored),
        "read.bias": np.full(3, -BIAS, np.float32),
    }
    window = {"kernel_shape": [PATCH, PATCH], "strides": [PATCH, PATCH]}
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], **window),
        helper.make_node("Conv", ["pooled", "mix.weight", "mix.bias"], ["wide"], HARMLESS),
        helper.make_node("Conv", ["wide", "weight", "read.bias"], ["evidence"], HARMFUL),
        helper.make_node("Relu", ["evidence"], ["maps"]),
        helper.make_node("GlobalMaxPool", ["evidence"], ["peak"]),
        helper.make_node("Flatten", ["peak"], ["scores"]),
    ]
    if half:
        nodes.insert(0, helper.make_node("Cast", ["read.weight"], ["weight"], to=TensorProto.FLOAT))
    else:
        tensors["weight"] = tensors.pop("read.weight")
    graph = helper.make_graph(
        nodes,
        "two-layers",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", 3, "rows", "columns"]),
        ],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(seal(model.SerializeToString(), color_card()))
    return path


def true_mask(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where :func:`blocks` drew a rectangle: one channel far above the others."""
    mask = np.zeros(image.shape[:2], np.uint8)
    for channel in range(3):
        mask[image[..., channel] == 230] = channel + 1
    return mask


def write_images(folder: Path, count: int, draw: Callable[[int], NDArray[np.uint8]] = blocks) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.fromarray(draw(index)).save(folder / f"{index:03d}.png")
    return folder


def write_truth(folder: Path, images: Path) -> Path:
    folder.mkdir()
    for path in images.glob("*.png"):
        Image.fromarray(true_mask(np.asarray(Image.open(path)))).save(folder / path.name)
    return folder


def gray_then_vivid(index: int) -> NDArray[np.uint8]:
    """Every other image, those that calibrate, is gray."""
    return blocks(index) if index % 2 else np.full((64, 96, 3), 100 + index, np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "color.onnx")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path, monkeypatch, capsys)


def quantize(*arguments: Any, **options: Any) -> Any:
    from wsss_rt.export.quantize import quantize as run

    return run(*arguments, **options)


def test_the_layer_that_harms_stays_in_float_and_the_file_runs_in_both_engines(
    tmp_path: Path, model: Path
) -> None:
    images = write_images(tmp_path / "photos", 20)
    truth = write_truth(tmp_path / "truth", images)
    out = tmp_path / "int8.onnx"
    report = quantize(model, out, calibrate=str(images), truth=truth)
    assert report.quantized == 1 and [name.split()[0] for name in report.in_float] == [HARMFUL]
    assert report.errors[0].layer.name == HARMFUL and report.errors[0].masks > report.errors[1].masks
    card = read_card(out)
    assert card.precision == "int8" and card.recommended == read_card(model).recommended
    made = card.options["quantized"]
    assert made["from"] == read_card(model).weights_sha256 and "10 and 10 of 20 given" in made["calibration"]
    assert card.quality["int8"]["passed"] is True
    assert card.quality["int8"]["miou"]["reference"] > 0.5
    data = out.read_bytes()
    assert b"QuantizeLinear" in data and b"DequantizeLinear" in data and str(tmp_path).encode() not in data
    whole = open_engine(model, backend="onnxruntime")
    for backend in ("onnxruntime", "openvino"):
        engine = open_engine(out, backend=backend)
        assert (engine.backend, engine.precision) == (backend, "int8")
        for size in ((64, 96), (37, 90), (121, 83)):
            pixels = blocks(3, height=size[0], width=size[1])
            tensor = ((pixels.transpose(2, 0, 1)[None] / 255 - 0.5) / 0.25).astype(np.float32)
            pair = np.ascontiguousarray(np.concatenate([tensor, tensor[..., ::-1]]))
            found, expected = engine.infer(pair), whole.infer(pair)
            assert np.abs(found.maps - expected.maps).max() < 0.03
            # an image's result does not depend on what shares its batch
            assert np.array_equal(found.maps[:1], engine.infer(tensor).maps)


def test_quantising_twice_gives_the_same_bytes(tmp_path: Path, model: Path) -> None:
    images = write_images(tmp_path / "photos", 16)
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        quantize(model, file, calibrate=str(images))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_weights_stored_in_half_are_quantised_too(tmp_path: Path) -> None:
    model = write_model(tmp_path / "half.onnx", half=True)
    report = quantize(
        model, tmp_path / "int8.onnx", calibrate=str(write_images(tmp_path / "photos", 16)), gate=False
    )
    assert report.quantized == 2 and report.card.quality["int8"] == "skipped"
    assert b"FLOAT16" not in (tmp_path / "int8.onnx").read_bytes()
    assert open_engine(tmp_path / "int8.onnx", backend="openvino").precision == "int8"


def test_a_model_whose_masks_change_is_refused_and_the_worst_layers_are_named(
    tmp_path: Path, model: Path, cli: Cli
) -> None:
    images = write_images(tmp_path / "photos", 20, gray_then_vivid)
    out = tmp_path / "int8.onnx"
    done = cli("export", model, "--precision", "int8", "--calibrate", images, "--out", out)
    assert done.code == 1 and not out.exists()
    assert "quality gate" in done.err and "nothing was written" in done.err
    assert HARMFUL in done.err and HARMLESS in done.err
    assert "FAIL" in done.out and "masks" in done.out
    # the refusal leaves nothing half-written beside it
    assert sorted(path.name for path in tmp_path.glob("*int8*")) == []


def test_a_folder_without_enough_readable_images_is_refused(tmp_path: Path, model: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "int8.onnx"
    with pytest.raises(UsageError):
        quantize(model, out, calibrate=str(empty))
    with pytest.raises(UsageError, match="no folder"):
        quantize(model, out, calibrate=str(tmp_path / "nowhere"))
    few = write_images(tmp_path / "few", 15)
    with pytest.raises(UsageError, match="holds 15 images that can be read") as caught:
        quantize(model, out, calibrate=str(few))
    assert "more images" in str(caught.value)
    for path in sorted(few.iterdir())[:10]:
        path.write_bytes(b"this is no image")
    with pytest.raises(UsageError, match="5 images that can be read, 10 others"):
        quantize(model, out, calibrate=str(few))
    assert not out.exists()


def test_broken_images_among_enough_others_do_not_matter(tmp_path: Path, model: Path) -> None:
    images = write_images(tmp_path / "photos", 20)
    for path in sorted(images.iterdir())[:3]:
        path.write_bytes(path.read_bytes()[:40])
    report = quantize(model, tmp_path / "int8.onnx", calibrate=str(images))
    assert "9 and 8 of 20" in report.card.options["quantized"]["calibration"]


def test_truth_that_does_not_fit_is_refused(tmp_path: Path, model: Path) -> None:
    images = write_images(tmp_path / "photos", 16)
    truth = write_truth(tmp_path / "truth", images)
    Image.fromarray(np.full((64, 96), 9, np.uint8)).save(truth / "001.png")
    with pytest.raises(UsageError, match="value 9"):
        quantize(model, tmp_path / "int8.onnx", calibrate=str(images), truth=truth)
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(truth / "001.png")
    with pytest.raises(UsageError, match="10x10"):
        quantize(model, tmp_path / "int8.onnx", calibrate=str(images), truth=truth)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A float32 model and its int8."""
    folder = tmp_path_factory.mktemp("quantised")
    model = write_model(folder / "color.onnx")
    quantize(model, folder / "int8.onnx", calibrate=str(write_images(folder / "photos", 16)))
    return model, folder / "int8.onnx"


def test_labelling_says_that_it_ran_in_int8(cli: Cli, tmp_path: Path, quantised: tuple[Path, Path]) -> None:
    images = write_images(tmp_path / "new", 3)
    done = cli("label", images, "--model", quantised[1], "--out", tmp_path / "labels", "--quiet")
    assert done.code == 0, done.err
    recorded = json.loads((tmp_path / "labels" / "run.json").read_text())
    assert recorded["engine"]["precision"] == "int8" and recorded["model"]["precision"] == "int8"
    assert len(list((tmp_path / "labels" / "masks").glob("*.png"))) == 3


def test_precisions_that_the_file_does_not_hold_are_refused(quantised: tuple[Path, Path]) -> None:
    whole, int8 = quantised
    assert open_engine(int8, precision="int8").precision == "int8"
    with pytest.raises(UsageError, match="quantise it first"):
        open_engine(whole, precision="int8")
    with pytest.raises(UsageError, match="has no float32"):
        open_engine(int8, precision="float32")


def test_a_quantised_file_is_not_quantised_again(tmp_path: Path, quantised: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="in int8"):
        quantize(quantised[1], tmp_path / "again.onnx", calibrate="scenes")


def test_bench_shows_int8_beside_float32(cli: Cli, tmp_path: Path, quantised: tuple[Path, Path]) -> None:
    whole, int8 = quantised
    images = write_images(tmp_path / "new", 3)
    done = cli(
        "bench", whole, "--quantized", int8, "--images", images, "--seconds", "0.01", "--scope", "model",
        "--precision", "float32", "--json", "-",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    engines = {engine["name"]: engine for engine in report["engines"]}
    assert set(engines) == {
        "onnxruntime float32", "openvino float32", "onnxruntime int8", "openvino int8"
    }  # fmt: skip
    assert engines["onnxruntime int8"]["agreement"]["masks"]["limit"] > 1e-3
    assert engines["openvino int8"]["agreement"]["passed"] is True
    rows = [row for row in report["rows"] if row["engine"].endswith("int8")]
    assert len(rows) == 2 and all(row["share_of_products"] is None for row in rows)


def test_bench_wants_the_two_files_that_belong_together(
    cli: Cli, tmp_path: Path, quantised: tuple[Path, Path]
) -> None:
    alone = cli("bench", quantised[1])
    assert alone.code == 2 and "--quantized" in alone.err
    other = tmp_path / "other.onnx"
    write_atomic(other, write_model(tmp_path / "base.onnx", half=True).read_bytes())
    done = cli("bench", other, "--quantized", quantised[1])
    assert done.code == 2 and "was not made from" in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "int8"), "--calibrate scenes"),
        (("--calibrate", "scenes"), "only go with --precision int8"),
        (("--precision", "int4", "--calibrate", "scenes"), "int8"),
        (("--precision", "int8", "--calibrate", "scenes", "--truth", "masks"), "their own masks"),
        ((), "--precision int8"),
    ],
)
def test_options_that_do_not_go_together(cli: Cli, model: Path, options: tuple[str, ...], words: str) -> None:
    done = cli("export", model, *options)
    assert done.code == 2 and words in done.err


def test_a_model_of_other_classes_is_judged_by_its_masks_alone() -> None:
    from wsss_rt.export.calibration_images import calibration_images

    chosen = calibration_images("scenes", None, color_card(), judging=8)
    assert len(chosen.judging) == 8 and set(chosen.truths) == {None}


@pytest.mark.slow
def test_a_run_is_quantised_without_a_float32_file_of_it(tmp_path: Path, cli: Cli) -> None:
    pytest.importorskip("onnxscript")
    from tests.exported import CLASSES, exported

    images = write_images(tmp_path / "photos", 16)
    out = tmp_path / "made" / "tiny.onnx"
    done = cli(
        "export", exported().run, "--precision", "int8", "--calibrate", images, "--skip-parity",
        "--out", out, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["quality"] == "skipped" and report["in_float"] == [] and report["quantized"] > 8
    assert [path.name for path in out.parent.iterdir()] == ["tiny.onnx"]
    card = read_card(out)
    assert (card.precision, card.classes, card.quality["int8"]) == ("int8", CLASSES, "skipped")
    pixels = np.random.default_rng(0).standard_normal((1, 3, 64, 71), dtype=np.float32)
    maps = [open_engine(file, backend="openvino").infer(pixels).maps for file in (out, exported().path)]
    assert maps[0].shape == maps[1].shape
    assert 0 < np.abs(maps[0] - maps[1]).mean() < 0.2 * np.abs(maps[1]).max()
