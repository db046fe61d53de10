"""OpenVINO in bfloat16 with attention in tiles: where it goes, that the model stays, what is said."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.label_models import color_card
from wsss_rt.engines import Engine, amx, first_use, open_engine
from wsss_rt.errors import ImageError
from wsss_rt.gate_images import GateImages
from wsss_rt.model_card import InputSpec, Recommended, seal

openvino = pytest.importorskip("openvino")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from timm.models.vision_transformer import VisionTransformer  # noqa: E402 - needs torch

from wsss_rt.export.graph import build_graph  # noqa: E402
from wsss_rt.training.models.mctformer import MCTformerV1, MCTformerV2  # noqa: E402
from wsss_rt.training.models.ts_cam import TSCAM  # noqa: E402

if (refusal := amx.refusal()) is not None:
    pytest.skip(refusal, allow_module_level=True)

from wsss_rt.engines import openvino_attention  # noqa: E402 - needs the processor

CLASSES = ("ant", "bee", "cat", "dog")
LAYERS = 2
# tokens: 4 + 64, 4 + 77, 4 + 11, 4 + 1; even, odd, fewer than a tile has rows, one patch
SIZES = ((64, 64), (56, 90), (8, 95), (8, 8))

MODELS: dict[str, tuple[type, int, dict[str, Any], tuple[tuple[int, int | None, int], ...]]] = {
    # method, heads, options, and the windows of the last layer: rows from, to, columns from
    "fused, heads of 64": (MCTformerV2, 2, {"layers_fused": 2}, ((0, 4, 4), (4, None, 4))),
    "fused, heads of 32": (MCTformerV2, 4, {"layers_fused": 1}, ((0, 4, 4), (4, None, 4))),
    "affinity alone": (MCTformerV2, 2, {"attention_type": "patchcam"}, ((4, None, 4),)),
    "class rows alone": (MCTformerV1, 2, {"affinity": False}, ((0, 4, 4),)),
    "one class token": (TSCAM, 2, {}, ((0, 1, 1),)),
}


@cache
def graph_of(name: str) -> bytes:
    method, heads, options, _ = MODELS[name]
    torch.manual_seed(0)
    backbone = VisionTransformer(
        img_size=64, patch_size=8, embed_dim=128, depth=LAYERS, num_heads=heads, num_classes=0
    )
    model = method(backbone, num_classes=len(CLASSES), img_size=64, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return build_graph(model, patch=8)


def artifact(folder: Path, name: str) -> Path:
    card = color_card(
        method="mctformer-v2",
        classes=CLASSES,
        colors=((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)),
        input=InputSpec(patch=8),
        recommended=Recommended(background=0.3, tag_thresholds=(0.5,) * 4, provenance="made for tests"),
    )
    path = folder / "model.onnx"
    path.write_bytes(seal(graph_of(name), card))
    return path


def opened(path: Path, precision: str = "bfloat16", **options: Any) -> Engine:
    return open_engine(path, backend="openvino", precision=precision, cache=False, gate=False, **options)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    span = wanted.max() - wanted.min()
    return float(
        np.sqrt(np.mean((found - wanted) ** 2)) / max(float(span), 1e-3 * float(np.abs(wanted).max()))
    )


@pytest.mark.parametrize("name", MODELS)
def test_attention_whose_mean_is_read_goes_into_tiles(name: str) -> None:
    graph = openvino.Core().read_model(model=graph_of(name), weights=b"")
    placed = openvino_attention.use_tiles(graph, openvino_attention.AttentionCrews(1))
    assert len(placed) == LAYERS
    last = placed[-1]._windows
    assert tuple((window.row, window.end, window.column) for window in last) == MODELS[name][3]
    # layers add to each other's sums, where more than the last is read
    fused = MODELS[name][2].get("layers_fused", 2)
    assert [window.sums for window in last] == [fused > 1 or window.row > 0 for window in last]
    assert not [node for node in graph.get_ordered_ops() if node.get_type_name() == "Softmax"]


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_same_model_at_any_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps err no more than those of the graph, which rounds attention more often."""
    path = artifact(tmp_path, name)
    exact, tiles = opened(path, "float32"), opened(path)
    assert tiles.choice["attention"] == f"{LAYERS} layers in tiles"
    assert "attention" not in exact.choice
    monkeypatch.setattr(amx, "refusal", lambda: "made for this test")
    graph = opened(path)
    assert graph.choice["attention"] == "in the graph: made for this test"
    own, usual = [], []
    for size in SIZES:
        images = noise(2, 3, *size)
        wanted, found, plain = (engine.infer(images) for engine in (exact, tiles, graph))
        assert found.maps.shape == wanted.maps.shape
        for values, errors in ((found, own), (plain, usual)):
            errors += [error(values.maps, wanted.maps), error(values.scores, wanted.scores)]
    assert max(own) < 0.1
    assert np.mean(own) <= 1.25 * np.mean(usual)


def test_an_image_has_the_same_bits_in_any_company_and_with_any_helpers(tmp_path: Path) -> None:
    path = artifact(tmp_path, "fused, heads of 64")
    a, b, c = noise(3, 3, 56, 90)
    engine, many = opened(path), opened(path, threads=6)
    alone = engine.infer(a[None])
    engine.infer(noise(1, 3, 120, 150))
    for batch, row in (([a, b, c], 0), ([b, a], 1), ([c, b, b, c, a], 4)):
        output = engine.infer(np.stack(batch))
        assert np.array_equal(output.maps[row], alone.maps[0])
        assert np.array_equal(output.scores[row], alone.scores[0])
    # the library's own products may round otherwise with more threads
    assert error(many.infer(a[None]).maps, alone.maps) < 0.02


def test_tiles_leave_what_the_library_counts_on(tmp_path: Path) -> None:
    """Its kernels and ours take turns in one thread; neither may find the other's shapes of tiles."""
    path = artifact(tmp_path, "fused, heads of 64")
    images = noise(1, 3, 64, 64)
    engine = opened(path, threads=1)
    first = engine.infer(images)
    for size in SIZES * 3:
        engine.infer(noise(1, 3, *size))
        again = engine.infer(images)
        assert np.array_equal(again.maps, first.maps)


def test_mixed_says_and_tells_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsss_rt.engines.amx import attention

    told: list[str] = []
    monkeypatch.setattr(attention, "warm_up", lambda announce: announce("compiling"))
    engine = opened(artifact(tmp_path, "fused, heads of 64"), "mixed", tell=told.append)
    assert engine.choice["attention"] == f"{LAYERS} layers in tiles"
    assert told == ["compiling"]


def test_a_kernel_that_cannot_be_compiled_leaves_the_graph_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsss_rt.engines.amx import attention

    def fail(announce: object) -> None:
        raise RuntimeError("no compiler today")

    monkeypatch.setattr(attention, "warm_up", fail)
    engine = opened(artifact(tmp_path, "fused, heads of 64"))
    assert engine.choice["attention"] == "in the graph: RuntimeError: no compiler today"
    assert np.isfinite(engine.infer(noise(1, 3, 64, 64)).maps).all()


def test_a_user_can_leave_attention_to_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSSS_RT_KERNELS", "reference")
    engine = opened(artifact(tmp_path, "fused, heads of 64"))
    assert engine.choice["attention"] == "in the graph: WSSS_RT_KERNELS=reference"


def test_other_graphs_stay_as_they_are(color_model: Path) -> None:
    engine = opened(color_model)
    assert engine.choice["attention"] == "0 layers in tiles"
    exact = opened(color_model, "float32")
    images = noise(1, 3, 32, 48)
    assert error(engine.infer(images).scores, exact.infer(images).scores) < 0.01


CHANGES = (
    "softmax over queries",
    "keys are queries",
    "weights are read elsewhere",
    "heads of half the width",
    "images in a row",
    "merged into more tokens",
    "float16",
    "no axis of images",
)


@pytest.mark.parametrize("change", CHANGES)
def test_what_only_resembles_attention_stays_in_the_graph(change: str) -> None:
    from openvino import opset13 as op

    def third(which: int) -> Any:
        start, stop = (np.array([value], np.int64) for value in (which, which + 1))
        cut = op.slice(stacked, start, stop, np.array([1], np.int64), np.array([0], np.int64))
        return op.squeeze(cut, np.array([0], np.int64))

    kind = np.float16 if change == "float16" else np.float32
    qkv = op.parameter([-1, 384] if change == "no axis of images" else [-1, -1, 384], kind)
    cuts = {
        "heads of half the width": [0, -1, 3, 2, 32],
        "images in a row": [1, -1, 3, 2, 64],
        "no axis of images": [1, -1, 3, 2, 64],
    }
    split = op.reshape(qkv, np.array(cuts.get(change, [0, 0, 3, 2, 64]), np.int64), special_zero=True)
    stacked = op.transpose(split, np.array([2, 0, 3, 1, 4]))
    keys = op.transpose(third(0 if change == "keys are queries" else 1), np.array([0, 1, 3, 2]))
    logits = op.matmul(op.multiply(third(0), kind(0.125)), keys, False, False)
    weights = op.softmax(logits, axis=2 if change == "softmax over queries" else 3)
    mixed = op.transpose(op.matmul(weights, third(2), False, False), np.array([0, 2, 1, 3]))
    more = change in ("merged into more tokens", "heads of half the width")
    out = op.reshape(mixed, np.array([0, -1, 64 if more else 128], np.int64), special_zero=True)
    results = [out, op.reduce_mean(weights, np.array([1], np.int64), keep_dims=False)]
    if change == "weights are read elsewhere":
        results.append(op.reduce_max(weights, np.array([1], np.int64)))
    graph = openvino.Model([result.output(0) for result in results], [qkv], "attention")
    assert not openvino_attention.use_tiles(graph, openvino_attention.AttentionCrews(1))


def two_layers(*, kept: bool, rows: int) -> Any:
    """The sum of two layers' means, ``kept``: with an axis of heads in the second's; of ``rows``, or all."""
    from openvino import opset13 as op

    def layer(value: Any, kept: bool) -> tuple[Any, Any]:
        split = op.reshape(value, np.array([0, 0, 3, 2, 32], np.int64), special_zero=True)
        stacked = op.transpose(split, np.array([2, 0, 3, 1, 4]))
        q, k, v = (op.gather(stacked, np.array(which), np.array(0)) for which in range(3))
        weights = op.softmax(op.matmul(op.multiply(q, np.float32(0.2)), k, False, True), axis=3)
        mixed = op.transpose(op.matmul(weights, v, False, False), np.array([0, 2, 1, 3]))
        mean = op.reduce_mean(weights, np.array([1], np.int64), keep_dims=kept)
        first = 2 if kept else 1
        cut = [np.array([number], np.int64) for number in (0, rows, 1, first)]
        merged = op.reshape(mixed, np.array([0, 0, 64], np.int64), special_zero=True)
        return merged, op.slice(mean, *cut) if rows else mean

    factor = np.random.default_rng(0).standard_normal((64, 192), dtype=np.float32)
    qkv = op.parameter([-1, -1, 192], np.float32)
    mixed, one = layer(qkv, False)
    mixed, other = layer(op.matmul(mixed, factor, False, False), kept)
    return openvino.Model([mixed.output(0), op.add(other, one).output(0)], [qkv], "two layers")


@pytest.mark.parametrize(("kept", "rows"), [(False, 0), (True, 0), (False, 30)])
def test_a_sum_that_spreads_one_layer_over_another_stays_a_sum(kept: bool, rows: int) -> None:
    """Also where an image has fewer tokens than rows are cut from the mean."""
    graph = two_layers(kept=kept, rows=rows)
    images = noise(2, 20, 192)
    core = openvino.Core()

    def outputs(model: Any, hint: str) -> list[NDArray[np.float32]]:
        done = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})(images)
        return [np.array(done[output]) for output in done]

    wanted = outputs(graph, "f32")
    crews = openvino_attention.AttentionCrews(1)
    assert len(openvino_attention.use_tiles(graph, crews)) == 2
    for found, exact in zip(outputs(graph, "bf16"), wanted, strict=True):
        assert found.shape == exact.shape
        assert error(found, exact) < 0.02


def test_memory_that_runs_out_in_the_operator_is_the_images_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(artifact(tmp_path, "fused, heads of 64"))

    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError("Unable to allocate 9.00 GiB for an array")

    with monkeypatch.context() as patched:
        patched.setattr(openvino_attention, "attention", fail)
        with pytest.raises(ImageError) as caught:
            engine.infer(noise(2, 3, 64, 64))
    assert caught.value.code == "out_of_memory"
    assert np.isfinite(engine.infer(noise(2, 3, 64, 64)).maps).all()


def test_the_gate_is_met_anew_where_attention_runs_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found of the graph says nothing of the tiles."""
    told: list[str] = []
    images = GateImages((np.zeros((64, 64, 3), np.uint8),), "one picture")
    path = artifact(tmp_path, "fused, heads of 64")
    compared = {"passed": True, "summary": "made for this test"}
    monkeypatch.setattr(first_use, "parity_result", lambda report: compared)
    monkeypatch.setattr(first_use, "compare_engines", lambda *engines: None)
    for why in (None, "made for this test", None):
        with monkeypatch.context() as patched:
            if why is not None:
                patched.setattr(amx, "refusal", partial(str, why))
            engine = opened(path)
            wanted = f"{LAYERS} layers in tiles" if why is None else f"in the graph: {why}"
            assert engine.choice["attention"] == wanted
            first_use.gate(
                engine, lambda: opened(path, "float32"), lambda: images, cache=True, tell=told.append
            )
    assert len(told) == 2


@pytest.mark.parametrize("closed", [True, False])
def test_an_engine_leaves_nothing_behind(
    closed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator that stays keeps the weights of all layers before it."""
    made: list[Any] = []
    true = openvino_attention.TileAttention.__init__

    def noted(self: Any, *arguments: Any) -> None:
        made.append(weakref.ref(self))
        true(self, *arguments)

    monkeypatch.setattr(openvino_attention.TileAttention, "__init__", noted)
    engine = opened(artifact(tmp_path, "fused, heads of 64"))
    engine.infer(noise(2, 3, 64, 64))
    assert len(made) >= LAYERS
    if closed:
        engine.close()
    del engine
    gc.collect()
    assert not any(reference() for reference in made)


def test_closing_ends_the_helpers(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    engine = opened(artifact(tmp_path, "fused, heads of 64"), threads=6)
    for size in SIZES * 2:
        engine.infer(noise(2, 3, *size))
    helpers = [
        thread for thread in set(threading.enumerate()) - before if thread.name.startswith("wsss-rt-crew")
    ]
    # two images at once, each with its share of the threads, one of which is the library's
    assert 2 <= len(helpers) <= 4
    engine.close()
    assert not any(helper.is_alive() for helper in helpers)
