"""Export: what the file holds and how it behaves, and that nothing appears unless the gate passes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from onnx import numpy_helper  # noqa: E402

from tests.exported import CLASSES, SIZES, exported  # noqa: E402 - needs torch
from wsss_rt.engines.base import EngineOutput  # noqa: E402
from wsss_rt.errors import UsageError, WsssError  # noqa: E402
from wsss_rt.export import graph as graph_module  # noqa: E402
from wsss_rt.export import onnx as export_module  # noqa: E402
from wsss_rt.export.onnx import export_onnx  # noqa: E402
from wsss_rt.gate_images import gate_images  # noqa: E402
from wsss_rt.model_card import CARD_KEY, SEAL_KEY, read_artifact, read_card  # noqa: E402
from wsss_rt.parity import LIMITS, ParityError, compare  # noqa: E402


def graph_of(path: Path) -> onnx.ModelProto:
    """The exported graph as it was before card and seal."""
    model = onnx.load(str(path))
    kept = [entry for entry in model.metadata_props if entry.key not in (CARD_KEY, SEAL_KEY)]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


@pytest.fixture
def no_tracing(monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """Tracing takes long and has its own tests; here the graph traced once comes back, to be changed."""
    model = graph_of(exported().path)
    monkeypatch.setattr(export_module, "build_graph", lambda *_, **__: model.SerializeToString())
    return model


def perturb(model: onnx.ModelProto, scale: float) -> None:
    """Change one weight matrix, as a wrong conversion would."""
    tensor = max(model.graph.initializer, key=lambda entry: len(entry.raw_data))
    values = numpy_helper.to_array(tensor)
    noise = np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values + scale * noise, tensor.name))


def test_the_card_says_what_the_run_said() -> None:
    given = exported()
    card = read_card(given.path)
    assert (card.method, card.kind, card.classes) == ("mctformer-v2", "localizer", CLASSES)
    assert card.colors[0] == (128, 0, 0) and len(card.colors) == len(CLASSES)
    assert card.input == given.config.input
    assert card.recommended == given.config.recommended
    assert card.options["layers_fused"] == 2 and card.options["weights"] == "float32"
    assert card.training == {"data": "photos", "seed": 3}
    assert card.quality["miou"] == 0.5
    assert replace(card, weights_sha256="") == given.report.card


def test_the_gate_ran_in_both_engines_and_the_card_says_so() -> None:
    parity = read_card(exported().path).quality["parity"]
    assert parity["passed"] is True and parity["images"] >= 8
    assert {name.split()[0] for name in parity["engines"]} == {"onnxruntime", "openvino"}
    for outputs in parity["engines"].values():
        assert outputs["maps"]["worst"] <= 1e-4
        assert outputs["masks"]["mean"] <= 1e-3


def test_the_artifact_is_one_file_without_a_trace_of_this_machine() -> None:
    given = exported()
    assert [path.name for path in given.path.parent.iterdir()] == ["tiny.onnx"]
    _, data = read_artifact(given.path)
    root = str(Path(__file__).resolve().parents[2])
    for needle in (
        root,
        os.path.expanduser("~") + "/",
        "site-packages",
        ".py",
        "torch",
        "/home/",
        str(given.run),
    ):
        assert needle.encode() not in data, needle
    model = onnx.load(str(given.path))
    onnx.checker.check_model(model, full_check=True)
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    assert all(not tensor.external_data for tensor in model.graph.initializer)
    assert model.opset_import[0].version >= 18


def test_batch_and_size_are_dynamic_and_named() -> None:
    model = onnx.load(str(exported().path))
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["batch", 3, "height", "width"],
        "scores": ["batch", len(CLASSES)],
        "maps": ["batch", len(CLASSES), "rows", "columns"],
    }


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_the_graph_itself_takes_any_batch_of_any_size(size: tuple[int, int], batch: int) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(exported().path), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(batch).standard_normal((batch, 3, *size), dtype=np.float32)
    scores, maps = session.run(["scores", "maps"], {"images": images})
    with torch.inference_mode():
        expected = [value.numpy() for value in exported().model(torch.from_numpy(images))]
    np.testing.assert_allclose(scores, expected[0], atol=1e-5 * np.abs(expected[0]).max(), rtol=0)
    np.testing.assert_allclose(maps, expected[1], atol=1e-5 * np.abs(expected[1]).max(), rtol=0)


def test_half_the_bytes_and_the_same_masks(tmp_path: Path, no_tracing: onnx.ModelProto) -> None:
    graph_module._store_half(no_tracing.graph)
    report = export_onnx(exported().model, exported().config, tmp_path / "half.onnx", weights="float16")
    full = graph_of(exported().path).ByteSize()
    # names and small tensors weigh a lot in a model this small; a real one comes to half
    stored = sum(len(tensor.raw_data) for tensor in no_tracing.graph.initializer)
    assert stored < 0.65 * sum(len(tensor.raw_data) for tensor in graph_of(exported().path).graph.initializer)
    assert report.size < full
    assert report.card.options["weights"] == "float16"
    assert report.parity is not None and report.parity.passed
    onnx.checker.check_model(onnx.load(str(tmp_path / "half.onnx")), full_check=True)


@pytest.mark.parametrize(
    ("scale", "before"),
    [(1e-2, []), (1.0, ["model.onnx"]), (np.nan, [])],
    ids=["slightly wrong", "wrong, over an older file", "nan"],
)
def test_a_graph_that_computes_something_else_is_not_written(
    tmp_path: Path, no_tracing: onnx.ModelProto, scale: float, before: list[str]
) -> None:
    for name in before:
        (tmp_path / name).write_bytes(b"what was there")
    perturb(no_tracing, scale)
    with pytest.raises(ParityError) as caught:
        export_onnx(exported().model, exported().config, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == before
    assert all((tmp_path / name).read_bytes() == b"what was there" for name in before)
    assert "nothing was written" in str(caught.value)
    failed = {(row.engine.split()[0], row.output) for row in caught.value.report.rows if not row.passed}
    assert {("onnxruntime", "maps"), ("openvino", "maps")} <= failed
    assert "FAIL" in caught.value.report.table()


def test_skipping_the_gate_is_written_into_the_card(tmp_path: Path, no_tracing: onnx.ModelProto) -> None:
    perturb(no_tracing, 1.0)
    report = export_onnx(exported().model, exported().config, tmp_path / "any.onnx", gate=False)
    assert report.parity is None
    assert read_card(tmp_path / "any.onnx").quality["parity"] == "skipped"


def test_a_graph_with_a_path_in_it_is_not_written(tmp_path: Path, no_tracing: onnx.ModelProto) -> None:
    no_tracing.graph.node[0].doc_string = f"{os.getcwd()}/training/models/mctformer.py, line 75"
    with pytest.raises(WsssError, match="mentions"):
        export_onnx(exported().model, exported().config, tmp_path / "leaky.onnx")
    assert list(tmp_path.iterdir()) == []


class Skewed:
    """An engine whose maps are off by a factor, or of another shape, or not finite."""

    backend = "skewed"

    def __init__(self, change: str) -> None:
        self.change = change

    def infer(self, images: np.ndarray) -> EngineOutput:
        output = reference(images)
        maps = {
            "none": lambda maps: maps,
            "factor": lambda maps: maps * np.float32(1.001),
            "shape": lambda maps: maps[..., :-1],
            "nan": lambda maps: np.full_like(maps, np.nan),
        }[self.change](output.maps)
        return EngineOutput(output.scores, maps)


def reference(images: np.ndarray) -> EngineOutput:
    """Deterministic stand-in for a model: scores and maps made of the pixels."""
    pooled = images[:, :, ::8, ::8][:, :, : images.shape[2] // 8, : images.shape[3] // 8]
    maps = np.maximum(np.concatenate([pooled, -pooled[:, :1]], axis=1), 0)
    return EngineOutput(maps.mean(axis=(2, 3)), np.ascontiguousarray(maps))


@pytest.mark.parametrize(
    ("change", "passed"), [("none", True), ("factor", False), ("shape", False), ("nan", False)]
)
def test_the_gate_sees_each_kind_of_difference(change: str, passed: bool) -> None:
    card = replace(read_card(exported().path), classes=CLASSES)
    chosen = gate_images(None)
    report = compare(
        reference,
        {"skewed": Skewed(change)},
        chosen.images,
        card=card,
        limits=LIMITS["float32"],
        source=chosen.source,
    )
    assert report.passed is passed
    rows = {row.output: row for row in report.rows}
    assert rows["scores"].passed is True
    assert rows["maps"].passed is passed
    if change == "factor":
        assert rows["maps"].worst == pytest.approx(1e-3, rel=1e-2)


def test_scenes_stand_in_for_photographs() -> None:
    chosen = gate_images(None)
    shapes = {image.shape[:2] for image in chosen.images}
    assert len(chosen.images) >= 8 and len(shapes) >= 6
    assert any(height != width for height, width in shapes)
    assert any(height % 8 and width % 8 for height, width in shapes)
    assert all(np.array_equal(a, b) for a, b in zip(chosen.images, gate_images(None).images, strict=True))


def test_the_users_images_are_used_and_broken_ones_passed_over(tmp_path: Path) -> None:
    from PIL import Image

    for index in range(9):
        Image.new("RGB", (40 + index, 30), (index * 20, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "0.png").write_bytes(b"not an image")
    chosen = gate_images(tmp_path)
    assert len(chosen.images) == 8
    assert {image.shape[1] for image in chosen.images} == set(range(41, 49))
    assert str(tmp_path) not in chosen.source
    (tmp_path / "1.png").unlink()
    with pytest.raises(UsageError, match="at least 8"):
        gate_images(tmp_path)
