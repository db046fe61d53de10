"""Graphs that say themselves what runs in half precision: valid, close to float32, float32 where needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from wsss_rt.assets import embedded_models
from wsss_rt.engines.base import EngineOutput
from wsss_rt.engines.onnxruntime import OnnxRuntimeEngine
from wsss_rt.export.graph import _store_half
from wsss_rt.export.typed_graph import Precision, typed_graph
from wsss_rt.gate_images import gate_images
from wsss_rt.model_card import ModelCard, read_artifact
from wsss_rt.parity import LIMITS, compare

HALVES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def embedded() -> tuple[ModelCard, bytes]:
    (path,) = embedded_models().values()
    return read_artifact(path)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def rounded(data: bytes, half: int) -> bytes:
    """The typed graph as float32 operations, each of whose results is rounded to half precision.

    It is what a GPU computes: products of half-precision numbers, added up in float32. ONNX Runtime's CPU
    provider has no bfloat16 at all, and leaves roundings out between float16 nodes.
    """
    model = onnx.load_model_from_string(data)
    types = types_of(model)
    for tensor in model.graph.initializer:
        if tensor.data_type == half:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        name = node.output[0]
        if node.op_type == "Cast" and types[node.input[0]] == half:
            nodes.append(helper.make_node("Identity", list(node.input), [name]))
        elif types.get(name) != half:
            nodes.append(node)
        else:
            exact = node.input[0] if node.op_type == "Cast" else f"{name}.exact"
            if node.op_type != "Cast":
                node.output[0] = exact
                nodes.append(node)
            nodes.append(helper.make_node("Cast", [exact], [f"{name}.rounded"], to=half))
            nodes.append(helper.make_node("Cast", [f"{name}.rounded"], [name], to=TensorProto.FLOAT))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def runner(data: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # what folds a pair of casts away would fold the rounding
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: list(session.run(None, {name: images}))


class Graph:
    """A graph in ONNX Runtime as the gate takes it."""

    backend = "graph"

    def __init__(self, data: bytes) -> None:
        self._run = runner(data)

    def infer(self, images: np.ndarray) -> EngineOutput:
        return EngineOutput(*self._run(images))


@pytest.mark.parametrize(
    ("precision", "as_it_is"), [("float16", True), ("float16", False), ("bfloat16", False)]
)
def test_the_gates_limits_hold(
    embedded: tuple[ModelCard, bytes], precision: Precision, as_it_is: bool
) -> None:
    card, data = embedded
    typed = typed_graph(data, precision)
    graph = Graph(typed if as_it_is else rounded(typed, HALVES[precision]))
    images = gate_images(None).images[1:7:2]
    report = compare(
        OnnxRuntimeEngine(card, data).infer,
        {"graph": graph},
        images,
        card=card,
        limits=LIMITS[precision],
        source="scenes",
    )
    assert report.passed, report.table()
    # and it is no float32: what should be rounded, was
    assert max(row.worst for row in report.rows if row.output == "maps") > 1e-5


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_what_is_half_and_what_is_not(embedded: tuple[ModelCard, bytes], precision: Precision) -> None:
    model = onnx.load_model_from_string(typed_graph(embedded[1], precision))
    onnx.checker.check_model(model, full_check=True)
    types, half = types_of(model), HALVES[precision]
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    products = 0
    for node in model.graph.node:
        kind = types[node.output[0]]
        if node.op_type in ("LayerNormalization", "InstanceNormalization", "Softmax"):
            assert kind == TensorProto.FLOAT, node.op_type
        if node.op_type == "Conv" or (node.op_type == "MatMul" and weights & set(node.input)):
            # all but the two small matrices that resize positions, which know nothing of the pixels
            products += kind == half
    # the convolutions of stem and head, and three blocks of four products
    assert products == 9 + 3 * 4
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {
        TensorProto.FLOAT
    }
    before = onnx.load_model_from_string(embedded[1]).graph
    for ours, theirs in ((model.graph.input, before.input), (model.graph.output, before.output)):
        assert [value.name for value in ours] == [value.name for value in theirs]
    # everything behind the last weights, the arithmetic of maps and scores
    last = max(index for index, node in enumerate(model.graph.node) if types[node.output[0]] == half)
    behind = [
        node for node in model.graph.node[last + 1 :] if node.op_type in ("MatMul", "ReduceMean", "Mul")
    ]
    assert behind and all(types[node.output[0]] != half for node in behind)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_no_range_counts_in_floats(embedded: tuple[ModelCard, bytes], precision: Precision) -> None:
    model = onnx.load_model_from_string(typed_graph(embedded[1], precision))
    types = types_of(model)
    ranges = [node for node in model.graph.node if node.op_type == "Range"]
    assert len(ranges) == 2
    assert {types[name] for node in ranges for name in node.input} == {TensorProto.INT64}
    if precision == "float32":
        images = np.random.default_rng(0).standard_normal((2, 3, 70, 91), dtype=np.float32)
        for ours, theirs in zip(
            runner(model.SerializeToString())(images), runner(embedded[1])(images), strict=True
        ):
            assert np.array_equal(ours, theirs)


def test_weights_that_are_stored_in_half_become_types(embedded: tuple[ModelCard, bytes]) -> None:
    plain = onnx.load_model_from_string(embedded[1])
    del plain.metadata_props[:]
    stored = onnx.ModelProto()
    stored.CopyFrom(plain)
    _store_half(stored.graph)
    typed = onnx.load_model_from_string(typed_graph(stored.SerializeToString(), "float16"))
    # what was stored in half is used in half, and no Cast is left between a weight and its product
    constants = {tensor.name for tensor in typed.graph.initializer}
    assert not [node for node in typed.graph.node if node.op_type == "Cast" and node.input[0] in constants]
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 80), dtype=np.float32)
    for ours, theirs in zip(
        runner(typed.SerializeToString())(images), runner(embedded[1])(images), strict=True
    ):
        assert np.abs(ours - theirs).max() <= 5e-3 * max(1.0, np.abs(theirs).max())


def small(scale: float) -> bytes:
    """images -> Conv -> maps; its own output is a product's, and its weight as large as ``scale``."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["images", "weight"], ["maps"], kernel_shape=[1, 1])],
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", 2, "height", "width"])],
        [numpy_helper.from_array(np.full((2, 3, 1, 1), scale, np.float32), "weight")],
    )
    return bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8
        ).SerializeToString()
    )


def test_an_output_that_a_product_gives_stays_float32() -> None:
    model = onnx.load_model_from_string(typed_graph(small(0.5), "float16"))
    assert [node.op_type for node in model.graph.node] == ["Cast", "Conv", "Cast"]
    (maps,) = runner(model.SerializeToString())(np.ones((1, 3, 2, 2), np.float32))
    assert maps.dtype == np.float32 and np.array_equal(maps, np.full((1, 2, 2, 2), 1.5))


def test_weights_beyond_the_range_of_float16_stay_float32() -> None:
    model = onnx.load_model_from_string(typed_graph(small(1e5), "float16"))
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    wide = onnx.load_model_from_string(typed_graph(small(1e5), "bfloat16"))
    assert [node.op_type for node in wide.graph.node] == ["Cast", "Conv", "Cast"]


def test_bfloat16_constants_are_rounded_to_nearest() -> None:
    model: Any = onnx.load_model_from_string(typed_graph(small(1.005859375), "bfloat16"))
    (weight,) = model.graph.initializer
    # halfway between 1.0 and 1.0078125 lies 1.00390625: above it, up
    assert np.unique(numpy_helper.to_array(weight).astype(np.float32)) == [1.0078125]
