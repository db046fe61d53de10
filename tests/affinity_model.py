"""A tiny real affinity model for tests of `label`: cells of like colour belong together; sealed ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wsss_rt.model_card import InputSpec, ModelCard, seal
from wsss_rt.refine.walk_params import RADIUS, STRIDE, pair_offsets

# how fast affinity falls with the difference of colours
STEEPNESS = 2.0


def affinity_card(**changes: Any) -> ModelCard:
    """Card of the model."""
    spec = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), patch=STRIDE)
    fields: dict[str, Any] = {
        "method": "color-affinity",
        "kind": "affinity",
        "classes": (),
        "input": spec,
        "outputs": ("affinity",),
    }
    return ModelCard(**(fields | changes))


def write_affinity_model(path: Path, **changes: Any) -> Path:
    """Write the model: cell means, and exp(-2 |difference|) to each neighbour; sizes round up."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    reach, numbers = RADIUS - 1, []

    def constant(name: str, values: Any) -> str:
        numbers.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    nodes = [
        helper.make_node(
            "AveragePool",
            ["images"],
            ["cells"],
            kernel_shape=[STRIDE, STRIDE],
            strides=[STRIDE, STRIDE],
            ceil_mode=1,
        ),
        helper.make_node(
            "Pad", ["cells", constant("around", [0, 0, 0, reach, 0, 0, reach, reach])], ["padded"]
        ),
        helper.make_node("Shape", ["cells"], ["size"], start=2),
    ]
    constant("axes", [2, 3])
    constant("channels", [1])
    planes = []
    for number, (dy, dx) in enumerate(pair_offsets()):
        start, end, plane = f"start{number}", f"end{number}", f"plane{number}"
        constant(start, [dy, reach + dx])
        nodes += [
            helper.make_node("Add", ["size", start], [end]),
            helper.make_node("Slice", ["padded", start, end, "axes"], [f"moved{number}"]),
            helper.make_node("Sub", ["cells", f"moved{number}"], [f"difference{number}"]),
            helper.make_node("Abs", [f"difference{number}"], [f"distance{number}"]),
            helper.make_node("ReduceMean", [f"distance{number}"], [plane], axes=[1], keepdims=1),
        ]
        planes.append(plane)
    numbers.append(numpy_helper.from_array(np.float32(-STEEPNESS), "steepness"))
    nodes += [
        helper.make_node("Concat", planes, ["apart"], axis=1),
        helper.make_node("Mul", ["apart", "steepness"], ["falling"]),
        helper.make_node("Exp", ["falling"], ["affinity"]),
    ]
    graph = helper.make_graph(
        nodes,
        "color-affinity",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [
            helper.make_tensor_value_info(
                "affinity", TensorProto.FLOAT, ["batch", len(planes), "rows", "columns"]
            )
        ],
        numbers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(seal(model.SerializeToString(), affinity_card(**changes)))
    return path
