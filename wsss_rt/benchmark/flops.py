"""What one pass of a model computes: multiply-accumulates of its matrix products, counted while it runs.

ONNX Runtime writes the shapes of every node it executed into its profile. With its optimisations off these
are the nodes of the file, so that nothing has to be inferred, and loops count as often as they turn. Counted
are matrix products and convolutions; everything else of a transformer is a few per cent of it and no matrix
product. Numbers are FLOPs: two for a multiply-accumulate.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt.segment import windows

if TYPE_CHECKING:
    from wsss_rt.model_card import ModelCard

Shape = Sequence[int]
# the place of the weights, or of the second factor, among the inputs
_SECOND = {
    "MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "Gemm": 1,
    "Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1,
}  # fmt: skip
# operators that hold products which are not counted; the report names them where they occur
_OPAQUE = ("Einsum", "Attention", "MultiHeadAttention", "GroupQueryAttention", "GRU", "LSTM", "RNN")


@dataclass(frozen=True)
class Count:
    """The products of one pass.

    Attributes:
        flops: of all of them.
        elements: numbers that they read and write, each operand and each result once.
        operators: FLOPs by operator of ONNX.
        uncounted: operators in the graph that hold products which are not in ``flops``.
    """

    flops: int
    elements: int
    operators: Mapping[str, int]
    uncounted: tuple[str, ...]

    def times(self, factor: int) -> Count:
        """So many passes."""
        operators = {name: factor * flops for name, flops in self.operators.items()}
        return Count(factor * self.flops, factor * self.elements, operators, self.uncounted)


def macs_of(operator: str, inputs: Sequence[Shape], output: Shape) -> int:
    """Multiply-accumulates of one node.

    Args:
        operator: of ONNX, one that :func:`count_pass` counts.
        inputs: shapes of its inputs, in order.
        output: shape of its first output.
    """
    first, second = inputs[0], inputs[_SECOND[operator]]
    if operator == "Gemm":
        # either factor may come transposed: what is left of the first one's size is the inner dimension
        return math.prod(output) * math.prod(first) // output[0]
    if operator == "ConvTranspose":
        # weights are (in, out / groups, kernel...): each input is spread over these
        return math.prod(first) * math.prod(second[1:])
    if "Conv" in operator:
        # weights are (out, in / groups, kernel...): each output gathers these
        return math.prod(output) * math.prod(second[1:])
    return math.prod(output) * first[-1]


def count_pass(model: bytes, card: ModelCard, size: tuple[int, int]) -> Count:
    """Run one image and count.

    Args:
        model: bytes of the artifact.
        card: its card; a model that slides over windows is counted as often as it does.
        size: (height, width) of the input, pixels.
    """
    spec, most = card.input, card.input.window
    if most is None or max(size) <= most:
        return _count(model, size)
    shapes = Counter(
        (rows.stop - rows.start, columns.stop - columns.start)
        for rows, columns in windows(size, most, spec.stride or most)
    )
    parts = [_count(model, shape).times(times) for shape, times in shapes.items()]
    operators: Counter[str] = Counter()
    for part in parts:
        operators.update(part.operators)
    return Count(
        sum(part.flops for part in parts), sum(part.elements for part in parts), dict(operators),
        parts[0].uncounted,
    )  # fmt: skip


def _count(model: bytes, size: tuple[int, int]) -> Count:
    operators: Counter[str] = Counter()
    elements, uncounted = 0, set()
    for node in _profile(model, size):
        operator = node["op_name"]
        if operator in _OPAQUE:
            uncounted.add(operator)
        if operator not in _SECOND:
            continue
        inputs = [next(iter(entry.values())) for entry in node["input_type_shape"]]
        output = next(iter(node["output_type_shape"][0].values()))
        operators[operator] += 2 * macs_of(operator, inputs, output)
        elements += sum(math.prod(shape) for shape in (inputs[0], inputs[_SECOND[operator]], output))
    return Count(operators.total(), elements, dict(operators), tuple(sorted(uncounted)))


def _profile(model: bytes, size: tuple[int, int]) -> list[dict[str, Any]]:
    """The nodes that one pass executed, as ONNX Runtime describes them."""
    import numpy as np
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="wsss-rt-bench-") as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # a weight that was packed for a kernel is freed, and its shape is missing from the profile
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "pass")
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, *size), np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text())
    # a node has events for its parts as well; only that of its kernel has shapes
    return [event["args"] for event in events if "output_type_shape" in event.get("args", {})]
