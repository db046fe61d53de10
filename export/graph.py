"""A model's graph as ONNX bytes: dynamic batch and size, weights inside, nothing of this machine."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from wsss_rt import __version__
from wsss_rt.errors import WsssError
from wsss_rt.kernels import use_kernels

Weights = Literal["float32", "float16"]

# the first opset whose LayerNormalization and reductions the exporter emits whole
OPSET = 18
INPUT = "images"
OUTPUTS = ("scores", "maps")
_AXES: Mapping[str, tuple[str | int | None, ...]] = {
    INPUT: ("batch", 3, "height", "width"),
    "scores": ("batch", None),
    "maps": ("batch", None, "rows", "columns"),
    "affinity": ("batch", None, "rows", "columns"),
}
_PIXEL_AXES = ("batch", None, "height", "width")
# a smaller tensor gains nothing, and biases and norms are where half precision hurts
_SMALLEST_HALF = 1024
_HALF_MAX = 65504.0


def build_graph(model: nn.Module, *, patch: int, weights: Weights = "float32") -> bytes:
    """Trace ``forward`` of a localizer or segmenter, which returns ``(scores, maps)``, or of an affinity net.

    The graph is made of plain operations whatever ``WSSS_RT_KERNELS`` says: ONNX has no place for Triton's.
    What a model can compute from its weights alone (``constants_folded``) is computed here, once.

    Args:
        model: in eval mode, float32, on the CPU.
        patch: pixels per token; fixes the size that is traced with, which does not fix the graph's.
        weights: how the file stores matrices; float16 halves the file, and the computation stays float32.

    Returns:
        ``ModelProto`` bytes, the same for the same model and versions.

    Raises:
        WsssError: the exporter cannot trace the model.
    """
    dynamic = torch.export.Dim.DYNAMIC
    # neither square nor a multiple of the patch, and no batch of one: such sizes would be baked in
    example = torch.zeros(2, 3, 5 * patch + patch // 2, 7 * patch + 1)
    folded = getattr(model, "constants_folded", nullcontext)
    kind: str = getattr(model, "kind", "localizer")
    try:
        with quiet(), torch.no_grad(), folded(), use_kernels("reference"):
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
                input_names=[INPUT],
                output_names=list(outputs_of(model)),
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise WsssError(
            f"{type(model).__name__} cannot be exported to ONNX",
            why=" ".join(str(error.__cause__ or error).split())[:400],
            code="export_failed",
        ) from error
    assert program is not None
    proto = program.model_proto
    _strip(proto, name=kind)
    # a segmenter's maps are as large as the image
    _name_axes(proto, {**_AXES, **({"maps": _PIXEL_AXES} if kind == "segmenter" else {})})
    if weights == "float16":
        _store_half(proto.graph)
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def outputs_of(model: nn.Module) -> tuple[str, ...]:
    """Names of what ``forward`` returns: scores and maps, unless the model says otherwise."""
    named: tuple[str, ...] = getattr(model, "graph_outputs", OUTPUTS)
    return named


def _strip(proto: onnx.ModelProto, *, name: str) -> None:
    """Remove what the exporter says of itself: stack traces name the files of the machine that exported."""
    proto.producer_name, proto.producer_version, proto.doc_string = "wsss-rt", __version__, ""
    proto.graph.name = name
    del proto.metadata_props[:]
    for holder in _holders(proto):
        holder.doc_string = ""
        if hasattr(holder, "metadata_props"):
            del holder.metadata_props[:]
    for graph in _graphs(proto):
        # shapes of intermediates under the tracer's symbols; engines infer their own
        del graph.value_info[:]
        del graph.quantization_annotation[:]


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    waiting = [proto.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _holders(proto: onnx.ModelProto) -> Iterator[Any]:
    """Every message that carries a doc string or metadata."""
    for graph in _graphs(proto):
        yield graph
        yield from graph.node
        yield from graph.initializer
        yield from graph.input
        yield from graph.output
    for function in proto.functions:
        yield function
        yield from function.node


def _name_axes(proto: onnx.ModelProto, axes: Mapping[str, tuple[str | int | None, ...]]) -> None:
    """Give the dynamic axes names that a person understands, in place of the tracer's symbols."""
    for value in (*proto.graph.input, *proto.graph.output):
        names = axes.get(value.name)
        dims = value.type.tensor_type.shape.dim
        if names is None or len(dims) != len(names):
            raise WsssError(
                f"the exported graph has an unexpected input or output {value.name!r}", code="export_failed"
            )
        for dim, name in zip(dims, names, strict=True):
            if isinstance(name, int) and dim.dim_value != name:
                raise WsssError(f"{value.name} does not take {name} channels", code="export_failed")
            if isinstance(name, str):
                if dim.HasField("dim_value"):
                    raise WsssError(
                        f"the exporter fixed the {name} of {value.name} at {dim.dim_value}",
                        why="the model's code turns a size into a constant",
                        code="export_failed",
                    )
                dim.dim_param = name


def _store_half(graph: onnx.GraphProto) -> None:
    """Store large float32 tensors as float16, each with a Cast back, which engines fold when they load."""
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < _SMALLEST_HALF or abs(values).max() > _HALF_MAX:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype("float16"), f"{name}.half"))
        casts.append(
            onnx.helper.make_node(
                "Cast", [f"{name}.half"], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT
            )
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def embedded_paths(data: bytes, needles: Iterable[str]) -> list[str]:
    """Those of ``needles`` (for example this machine's folders) that occur in the bytes of a graph."""
    # a home or working folder of "/" says nothing
    return [needle for needle in needles if needle.strip("/") and needle.encode() in data]


@contextmanager
def quiet() -> Iterator[None]:
    """The exporters report their own progress and deprecations; none of it is for whoever exports a model."""
    names = ("torch.onnx", "torch.export", "torch.utils.cpp_extension", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
