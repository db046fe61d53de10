"""A float32 graph made fit for TensorRT's parser, which says itself what runs in float16 or bfloat16.

TensorRT 11 has no builder flags for precision any more: a network is strongly typed, and computes each layer
in the types of its tensors ("Strongly Typed Networks Are Now Required" in
https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/api/migration/tensorrt-10x-to-11x.html). TensorRT 10 does
the same where it is asked to. So the types are set here, once for both.

What turns to half precision is what leads into a product with weights, from the image on: convolutions and
matrix products, and the additions and moves between them. What stays in float32: normalisations, softmax and
every other reduction or exponential; everything behind the last weights, which is the arithmetic of maps and
scores; and all that depends on the image's size alone, such as the resized position embedding. Inputs and
outputs of the graph stay float32 too.

In every precision a ``Range`` over floats becomes one over integers: the parser takes floats only where they
are constants (https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference, version_converter

from wsss_rt.errors import WsssError

Precision = Literal["float32", "float16", "bfloat16"]

_TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
_FLOAT = TensorProto.FLOAT
_BFLOAT16_OPSET = 22
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_MOVES = frozenset(
    {
        "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze",
        "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_POINTWISE = frozenset({"Add", "Div", "Erf", "Gelu", "MaxPool", "Mul", "Relu", "Sub"})
HALF_OPERATORS = _PRODUCTS | _MOVES | _POINTWISE
# what these read of a tensor is its shape, or an index: its values do not flow on
_SHAPE_READERS = frozenset({"Shape", "Size"})
_LARGEST = {"float16": 65504.0, "bfloat16": 3.3e38}


def typed_graph(model: bytes, precision: Precision) -> bytes:
    """The same graph with its weighted part in the precision asked for.

    Args:
        model: ``ModelProto`` bytes of an artifact or of :func:`wsss_rt.export.graph.build_graph`, float32.
        precision: of the part that leads into products with weights.

    Returns:
        ``ModelProto`` bytes; float32 inputs and outputs of the same names, no metadata.

    Raises:
        WsssError: the graph holds nested graphs, which no exported model does.
    """
    proto = onnx.load_model_from_string(model)
    del proto.metadata_props[:]
    for node in proto.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise WsssError(
                f"the graph cannot be turned to {precision}",
                why=f"its node {node.op_type} holds a graph of its own",
                code="precision_unavailable",
            )
    _unpack_stored_halves(proto.graph)
    _count_in_integers(proto.graph)
    if precision == "bfloat16":
        # before that, Conv and others have no bfloat16
        proto = version_converter.convert_version(proto, _BFLOAT16_OPSET)
    if precision != "float32":
        _Typing(proto, precision).rewrite()
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _unpack_stored_halves(graph: onnx.GraphProto) -> None:
    """Float32 in place of initializers that are stored as float16 behind a Cast (``--weights float16``)."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        tensor = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if tensor is None or tensor.data_type != TensorProto.FLOAT16:
            kept.append(node)
            continue
        values = numpy_helper.to_array(tensor).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in kept for name in node.input}
    unused = [tensor for tensor in graph.initializer if tensor.name not in read]
    for tensor in unused:
        graph.initializer.remove(tensor)


def _count_in_integers(graph: onnx.GraphProto) -> None:
    """``Range`` over int64, then a Cast, where the end of one over floats was cast from an integer."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        ends = [constants.get(node.input[0]), constants.get(node.input[2])] if node.op_type == "Range" else []
        limit = casts.get(node.input[1]) if ends else None
        values = [numpy_helper.to_array(tensor) for tensor in ends if tensor is not None]
        if limit is None or len(values) < 2 or any(value != np.round(value) for value in values):
            nodes.append(node)
            continue
        name = node.output[0]
        inputs = [f"{name}.start", limit.input[0], f"{name}.delta"]
        for label, value in zip((inputs[0], inputs[2]), values, strict=True):
            graph.initializer.append(numpy_helper.from_array(value.astype(np.int64), label))
        nodes.append(helper.make_node("Range", inputs, [f"{name}.integers"], name=f"{name}.integers"))
        nodes.append(
            helper.make_node("Cast", [f"{name}.integers"], [name], name=f"{name}.cast", to=TensorProto.FLOAT)
        )
    del graph.node[:]
    graph.node.extend(nodes)


class _Typing:
    """The rewriting of one graph."""

    def __init__(self, proto: onnx.ModelProto, precision: Precision) -> None:
        self._graph, self._precision = proto.graph, precision
        self._half = _TYPES[precision]
        self._initializers = {tensor.name: tensor for tensor in self._graph.initializer}
        self._types = _element_types(proto)
        self._chosen = self._choose()
        self._cast: dict[tuple[str, int], str] = {}
        self._nodes: list[onnx.NodeProto] = []

    def rewrite(self) -> None:
        """Change the graph in place."""
        outputs = {value.name for value in self._graph.output}
        made_half: set[str] = set()
        for index, node in enumerate(self._graph.node):
            half = index in self._chosen
            for position, name in enumerate(node.input):
                if self._types.get(name) != _FLOAT or half == (name in made_half):
                    continue
                node.input[position] = self._converted(name, self._half if half else _FLOAT)
            self._nodes.append(node)
            if not half:
                continue
            for position, name in enumerate(node.output):
                if name in outputs:
                    node.output[position] = f"{name}.{self._precision}"
                    made_half.add(node.output[position])
                    self._append_cast(node.output[position], name, _FLOAT)
                elif self._types.get(name) == _FLOAT:
                    made_half.add(name)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        # types of intermediates are other ones now, and engines infer their own
        del self._graph.value_info[:]
        read = {name for node in self._nodes for name in node.input}
        for tensor in [tensor for tensor in self._graph.initializer if tensor.name not in read]:
            self._graph.initializer.remove(tensor)

    def _choose(self) -> set[int]:
        """Indices of the nodes that run in half precision."""
        nodes = list(self._graph.node)
        from_image = _reached({value.name for value in self._graph.input}, nodes)
        chosen: set[int] = set()
        needed: set[str] = set()
        for index in range(len(nodes) - 1, -1, -1):
            node = nodes[index]
            if not from_image.intersection(node.output):
                continue
            product = node.op_type in _PRODUCTS and any(self._is_weight(name) for name in node.input)
            if not product and not needed.intersection(node.output):
                continue
            needed.update(name for name in node.input if name in from_image)
            if node.op_type in HALF_OPERATORS and self._fits(node):
                chosen.add(index)
        return chosen

    def _is_weight(self, name: str) -> bool:
        tensor = self._initializers.get(name)
        return tensor is not None and len(tensor.dims) > 1

    def _fits(self, node: onnx.NodeProto) -> bool:
        """Whether the node's data is float32, and its constants are within the range of half precision."""
        if any(self._types.get(name) != _FLOAT for name in node.output):
            return False
        limit = _LARGEST[self._precision]
        for name in node.input:
            tensor = self._initializers.get(name)
            if tensor is not None and tensor.data_type == _FLOAT:
                values = numpy_helper.to_array(tensor)
                if values.size and np.abs(values).max() > limit:
                    return False
        return True

    def _converted(self, name: str, to: int) -> str:
        """Name of a tensor in the other type, made once."""
        key = (name, to)
        if key not in self._cast:
            new = f"{name}.{'float32' if to == _FLOAT else self._precision}"
            tensor = self._initializers.get(name)
            if tensor is not None:
                self._graph.initializer.append(_half_tensor(numpy_helper.to_array(tensor), new, to))
            else:
                self._append_cast(name, new, to)
            self._cast[key] = new
        return self._cast[key]

    def _append_cast(self, source: str, target: str, to: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=to))


def _half_tensor(values: np.ndarray, name: str, to: int) -> TensorProto:
    if to == TensorProto.FLOAT16:
        return numpy_helper.from_array(values.astype(np.float16), name)
    # round to nearest, ties to even, which is what a Cast does
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return helper.make_tensor(name, to, values.shape, rounded.tobytes(), raw=True)


def _reached(start: set[str], nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names of the tensors into which the values of ``start`` flow."""
    reached = set(start)
    for node in nodes:
        if node.op_type not in _SHAPE_READERS and reached.intersection(node.input):
            reached.update(node.output)
    return reached


def _element_types(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = shape_inference.infer_shapes(proto).graph
    types = {tensor.name: int(tensor.data_type) for tensor in proto.graph.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        types[value.name] = int(value.type.tensor_type.elem_type)
    return types
