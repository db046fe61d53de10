"""An artifact's graph with some of its layers in int8: ranges by calibration, then QDQ nodes around them."""

from __future__ import annotations

import copy
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wsss_rt import __version__
from wsss_rt.errors import MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# products and convolutions of an activation with weights. Products of two activations (attention) gain
# nothing from int8 on a CPU: at a head's width they wait for memory, and their results stay float
LAYERS = ("Conv", "Gemm", "MatMul")
# how the range of an activation follows from what calibration saw
METHODS = ("minmax", "percentile")
PERCENTILE = 99.99


@dataclass(frozen=True)
class Layer:
    """A node that can run in int8.

    Attributes:
        name: of the node in the graph.
        operator: ``Conv``, ``Gemm`` or ``MatMul``.
        weight: shape of its weights.
    """

    name: str
    operator: str
    weight: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} ({self.operator} {'x'.join(map(str, self.weight))})"


class QuantizableGraph:
    """A float32 graph whose layers can be put into int8, any of them, after one calibration.

    Args:
        model: bytes of an artifact; card and seal are dropped.
    """

    def __init__(self, model: bytes) -> None:
        self._proto = onnx.load_from_string(model)
        del self._proto.metadata_props[:]
        _restore_float(self._proto.graph)
        weights = {tensor.name: tuple(tensor.dims) for tensor in self._proto.graph.initializer}
        self.layers = tuple(
            Layer(node.name, node.op_type, weights[node.input[1]])
            for node in self._proto.graph.node
            if node.op_type in LAYERS and _fits(node.op_type, weights.get(node.input[1], ()))
        )
        self._all_ranges: dict[str, Any] = {}
        self._ranges: Any = None

    def calibrate(self, inputs: Sequence[NDArray[np.float32]], *, method: str = "minmax") -> None:
        """Measure what every layer gets to see.

        Args:
            inputs: (1, 3, H, W) each, as the engine gets them.
            method: ``minmax`` covers all values, ``percentile`` cuts off the rarest.
        """
        with tempfile.TemporaryDirectory(prefix="wsss-rt-") as folder, _quiet():
            path = Path(folder) / "float.onnx"
            onnx.save(self._proto, path)
            calibrator = _create_calibrator(path, method)
            for tensor in inputs:
                # one at a time: the library holds what all layers saw until it has read all it is given
                calibrator.collect_data(_Reader(self._proto.graph.input[0].name, [tensor]))
            self._all_ranges[method] = calibrator.compute_data()
        self.use(method)

    def use(self, method: str) -> None:
        """Take the ranges of a method that was calibrated with before."""
        self._ranges = self._all_ranges[method]

    def quantized(self, layers: Sequence[Layer]) -> bytes:
        """The graph with these layers in int8: weights by output channel, activations by tensor.

        Results stay float: they go into norms, residuals and GELU, which want them whole.

        Raises:
            ValueError: called before :meth:`calibrate`.
        """
        if self._ranges is None:
            raise ValueError("calibrate first")
        proto = copy.deepcopy(self._proto)
        _insert_pairs(proto.graph, {layer.name for layer in layers}, self._ranges)
        del proto.graph.value_info[:]
        proto.producer_name, proto.producer_version = "wsss-rt", __version__
        onnx.checker.check_model(proto)
        data: bytes = proto.SerializeToString(deterministic=True)
        return data


def _fits(operator: str, weight: tuple[int, ...]) -> bool:
    """Whether these are weights; products of several matrices at once have no output channel."""
    return len(weight) > 2 if operator == "Conv" else len(weight) == 2


def _insert_pairs(graph: onnx.GraphProto, names: set[str], ranges: Any) -> None:
    """QuantizeLinear and DequantizeLinear before the inputs of the named nodes; engines fuse them.

    The library's own quantiser gives what it rounded to every consumer of a tensor, residuals and shapes
    among them, and rounds what a layer puts out; here a layer rounds for itself alone.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    wanted = [node for node in graph.node if node.name in names]
    added: dict[str, list[onnx.NodeProto]] = {}
    rounded: dict[str, str] = {}
    for node in wanted:
        source, weight = node.input[0], node.input[1]
        if source not in rounded:
            rounded[source] = f"{source}.rounded"
            added[source] = _activation_pair(graph, source, *ranges[source].range_value)
        if weight not in rounded:
            rounded[weight] = f"{weight}.rounded"
            added[weight] = [_weight_node(graph, weights[weight], _output_axis(node))]
        node.input[0], node.input[1] = rounded[source], rounded[weight]
    # those of weights first, those of activations behind what makes them
    nodes = [pair for name in added if name in weights for pair in added[name]]
    given = [value.name for value in graph.input]
    nodes += [pair for name in given if name in added for pair in added[name]]
    for node in graph.node:
        nodes.append(node)
        nodes += [pair for name in node.output if name in added for pair in added[name]]
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    kept = [copy.deepcopy(tensor) for tensor in graph.initializer if tensor.name in used]
    nodes = [copy.deepcopy(node) for node in nodes]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _activation_pair(graph: onnx.GraphProto, name: str, lowest: Any, highest: Any) -> list[onnx.NodeProto]:
    """Unsigned, by tensor: both engines have kernels for unsigned activations with signed weights."""
    # zero must be exact, for it is what convolutions pad with
    low, high = min(0.0, float(np.min(lowest))), max(0.0, float(np.max(highest)))
    scale = np.float32((high - low) / 255 or 1.0)
    zero = np.uint8(np.clip(round(-low / float(scale)), 0, 255))
    made = {"scale": scale, "zero": zero}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), f"{name}.{part}") for part, value in made.items()
    )
    parameters = [f"{name}.scale", f"{name}.zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}.steps"], name=f"{name}.quantize"),
        helper.make_node(
            "DequantizeLinear",
            [f"{name}.steps", *parameters],
            [f"{name}.rounded"],
            name=f"{name}.dequantize",
        ),
    ]


def _weight_node(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int) -> onnx.NodeProto:
    """Signed around zero, by output channel."""
    values = numpy_helper.to_array(tensor)
    others = tuple(index for index in range(values.ndim) if index != axis)
    scale = (np.abs(values).max(axis=others) / 127).astype(np.float32)
    scale[scale == 0] = 1
    shape = [-1 if index == axis else 1 for index in range(values.ndim)]
    steps = np.clip(np.rint(values / scale.reshape(shape)), -127, 127).astype(np.int8)
    name = tensor.name
    made = {"steps": steps, "scale": scale, "zero": np.zeros(scale.shape, np.int8)}
    graph.initializer.extend(numpy_helper.from_array(value, f"{name}.{part}") for part, value in made.items())
    return helper.make_node(
        "DequantizeLinear",
        [f"{name}.steps", f"{name}.scale", f"{name}.zero"],
        [f"{name}.rounded"],
        name=f"{name}.dequantize",
        axis=axis,
    )


def _output_axis(node: onnx.NodeProto) -> int:
    """Of the weights of a node, the axis of what it puts out."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def _restore_float(graph: onnx.GraphProto) -> None:
    """Undo ``export --weights float16``: layers are found by their float32 weights."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        tensor = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT16:
            kept.append(node)
            continue
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)


def _create_calibrator(path: Path, method: str) -> Any:
    try:
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
    except ImportError as error:
        raise MissingExtraError(
            "wsss-rt export --precision int8", extra="export", package=error.name or "onnx"
        ) from error
    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
    }
    extra = {"percentile": PERCENTILE} if method == "percentile" else {}
    return create_calibrator(
        path,
        list(LAYERS),
        augmented_model_path=str(path.with_name("augmented.onnx")),
        calibrate_method=methods[method],
        extra_options=extra,
    )


class _Reader:
    """Hands the library one input at a time."""

    def __init__(self, name: str, inputs: Sequence[NDArray[np.float32]]) -> None:
        self._name, self._left = name, iter(inputs)

    def get_next(self) -> Mapping[str, NDArray[np.float32]] | None:
        """The next input, None after the last."""
        found = next(self._left, None)
        return None if found is None else {self._name: found}


@contextmanager
def _quiet() -> Iterator[None]:
    """The library prints what it does, and warns of a preprocessing that this graph does not need."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
