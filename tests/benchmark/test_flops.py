"""Products of a graph against sums by hand, and of the model that measures what an engine can reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.label_models import write_color_model
from wsss_rt.benchmark.flops import count_pass, macs_of
from wsss_rt.benchmark.product_model import CHAIN, FLOPS, ROWS, SIDE, product_model
from wsss_rt.engines import open_engine
from wsss_rt.model_card import InputSpec, read_artifact

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("operator", "inputs", "output", "macs"),
    [
        ("MatMul", [(2, 5, 7), (7, 3)], (2, 5, 3), 2 * 5 * 7 * 3),
        ("MatMul", [(2, 4, 5, 7), (2, 4, 7, 5)], (2, 4, 5, 5), 2 * 4 * 5 * 7 * 5),
        ("QLinearMatMul", [(5, 7), (), (), (7, 3)], (5, 3), 5 * 7 * 3),
        ("Gemm", [(5, 7), (7, 3), (3,)], (5, 3), 5 * 7 * 3),
        ("Gemm", [(7, 5), (3, 7)], (5, 3), 5 * 7 * 3),
        ("Conv", [(1, 6, 9, 9), (8, 3, 3, 3)], (1, 8, 7, 7), 8 * 49 * 3 * 9),
        ("QLinearConv", [(1, 6, 9, 9), (), (), (8, 3, 3, 3)], (1, 8, 7, 7), 8 * 49 * 3 * 9),
        ("ConvTranspose", [(1, 6, 9, 9), (6, 8, 2, 2)], (1, 8, 18, 18), 6 * 81 * 8 * 4),
    ],
)
def test_macs_of_a_node(operator: str, inputs: list[Any], output: tuple[int, ...], macs: int) -> None:
    assert macs_of(operator, inputs, output) == macs


def test_a_convolution_of_one_pixel_windows_is_counted_with_its_bytes(tmp_path: Path) -> None:
    card, model = read_artifact(write_color_model(tmp_path / "color.onnx"))
    count = count_pass(model, card, (20, 33))
    # two by four tokens of three channels, three classes each; pooling multiplies nothing
    assert count.flops == 2 * 8 * 3 * 3 and count.operators == {"Conv": count.flops}
    assert count.elements == 3 * 8 + 3 * 3 + 3 * 8 and count.uncounted == ()


def test_windows_are_counted_as_often_as_they_slide(tmp_path: Path) -> None:
    spec = InputSpec(patch=8, window=16, stride=8)
    card, model = read_artifact(write_color_model(tmp_path / "color.onnx", input=spec))
    assert count_pass(model, card, (16, 16)).flops == 2 * 4 * 9
    # two rows of three windows
    assert count_pass(model, card, (24, 32)).flops == 6 * 2 * 4 * 9


def test_loops_count_as_often_as_they_turn_and_what_is_not_counted_is_named(tmp_path: Path) -> None:
    helper, kind = onnx.helper, onnx.TensorProto
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "weight"], ["next"]),
            helper.make_node("Identity", ["go"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", kind.INT64, []),
            helper.make_tensor_value_info("go", kind.BOOL, []),
            helper.make_tensor_value_info("state", kind.FLOAT, [1, 3, "height", 4]),
        ],
        [
            helper.make_tensor_value_info("still", kind.BOOL, []),
            helper.make_tensor_value_info("next", kind.FLOAT, [1, 3, "height", 4]),
        ],
    )
    nodes = [
        helper.make_node("Loop", ["turns", "", "images"], ["maps"], body=body),
        helper.make_node("Einsum", ["maps"], ["scores"], equation="bchw->bc"),
    ]
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    graph = helper.make_graph(
        nodes,
        "loop",
        [helper.make_tensor_value_info("images", kind.FLOAT, [1, 3, "height", 4])],
        [
            helper.make_tensor_value_info("scores", kind.FLOAT, [1, 3]),
            helper.make_tensor_value_info("maps", kind.FLOAT, [1, 3, "height", 4]),
        ],
        [helper.make_tensor("turns", kind.INT64, [], [5]), weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    card, _ = read_artifact(write_color_model(tmp_path / "color.onnx"))
    count = count_pass(model.SerializeToString(), card, (6, 4))
    assert count.flops == 5 * 2 * 3 * 6 * 4 * 4 and count.uncounted == ("Einsum",)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_model_of_products_multiplies_in_every_engine(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    data = product_model()
    onnx.checker.check_model(data)
    (tmp_path / "products.onnx").write_bytes(data)
    weight = onnx.numpy_helper.to_array(onnx.load_from_string(data).graph.initializer[0])
    assert weight.shape == (SIDE, SIDE)
    engine = open_engine(tmp_path / "products.onnx", backend=backend)
    # few rows: the rate is not what is tested here
    rows = np.random.default_rng(0).standard_normal((1, 3, 16, SIDE), dtype=np.float32)
    expected = rows
    for _ in range(CHAIN):
        expected = expected @ weight
    found = engine.infer(rows).scores
    np.testing.assert_allclose(found, expected.max(axis=(2, 3)), rtol=1e-4)
    card, _ = read_artifact(tmp_path / "products.onnx")
    assert count_pass(data, card, (16, SIDE)).flops * ROWS == FLOPS * 16
