"""The kernels as TensorRT plugins: PTX compiled here, launched by TensorRT itself, without Python.

TensorRT's quickly deployable plugins (``tensorrt.plugin``, 10.7 and later; experimental) take a description
of a node's outputs and, ahead of time, a kernel: its PTX, its grid and its whole-number arguments as
expressions of the input's shape. :func:`register_plugins` describes the nodes that :func:`build_plugin_graph`
writes into an ONNX file in place of attention with maps. An engine built so is for one architecture.

What has run: Triton's compiler and NVIDIA's assembler on these kernels, and the expressions, against the
launches of the operators themselves (``tests/export/test_tensorrt_plugins.py``). TensorRT has not.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from wsss_rt.errors import WsssError
from wsss_rt.export.graph import build_graph
from wsss_rt.kernels._dispatch import as_plugins
from wsss_rt.kernels._plugin_node import NAMESPACE

_LOG2_E = math.log2(math.e)
_STRIP = 256
# what a kernel may take without being asked first: whether TensorRT asks is not documented
_MOST_SHARED = 48 * 1024


@dataclass(frozen=True)
class Program:
    """One launch, some of it in terms of a shape.

    Attributes:
        kernel: of ``plugin_kernels``.
        constants: its ``constexpr`` arguments.
        numbers: its whole-number arguments; numbers, or expressions of TensorRT.
        grid: factors of the number of programs; likewise.
        warps: of 32 threads.
        stages: of the software pipeline.
    """

    kernel: Any
    constants: Mapping[str, Any]
    numbers: Sequence[Any]
    grid: Sequence[Any]
    warps: int = 4
    stages: int = 2


#: A shape made of the inputs' shapes and the attributes.
ShapeOf = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Any, ...]]
#: What a plugin's program is made of: shapes and types of its inputs, attributes, ceiling division.
Planner = Callable[
    [Sequence[Sequence[Any]], Sequence[str], Mapping[str, Any], Callable[[Any, int], Any]], Program
]


@dataclass(frozen=True)
class Plugin:
    """A plugin before TensorRT.

    Attributes:
        name: of the plugin and of its nodes.
        inputs: names of its tensors.
        attributes: names and types.
        outputs: for each, the input that it is like, or the shape of a float32 tensor.
        plan: its program.
    """

    name: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, type]
    outputs: Sequence[str | ShapeOf]
    plan: Planner


def build_plugin_graph(model: nn.Module, *, patch: int) -> bytes:
    """``build_graph``, with plugin nodes where attention gives maps. Only TensorRT can run it.

    Args:
        model: in eval mode, float32, on the CPU.
        patch: pixels per token.

    Returns:
        ``ModelProto`` bytes.

    Raises:
        WsssError: the exporter cannot trace the model.
    """
    with as_plugins():
        return build_graph(model, patch=patch)


def register_plugins(architecture: int, *, tensorrt: Any = None, plugin: Any = None) -> list[str]:
    """Make the plugins known to TensorRT in this process, whose ONNX parser then takes their nodes.

    Args:
        architecture: compute capability times ten of the GPU that will run the engine.
        tensorrt: the module, where it is not to be imported.
        plugin: ``tensorrt.plugin``, likewise.

    Returns:
        Their identifiers.

    Raises:
        WsssError: TensorRT is not installed, or older than 10.7; or a kernel exceeds its bounds.
    """
    if tensorrt is None or plugin is None:
        tensorrt, plugin = _import()
    made = []
    for one in PLUGINS:
        identifier = f"{NAMESPACE}::{one.name}"
        plugin.register(identifier)(_description(one, tensorrt, plugin))
        plugin.aot_impl(identifier)(_implementation(one, architecture, tensorrt, plugin))
        made.append(identifier)
    return made


def compile_program(
    program: Program, pointers: Sequence[str], outputs: Sequence[str], architecture: int
) -> tuple[str, str, int]:
    """Name, PTX and shared memory of a program whose tensors have these Triton types."""
    from wsss_rt.kernels.ahead_of_time import Launch, compile_launch

    names = program.kernel.arg_names
    variable = [name for name in names if name not in program.constants]
    types = [*pointers, *["i32"] * len(program.numbers), *outputs]
    signature = {**dict.fromkeys(program.constants, "constexpr"), **dict(zip(variable, types, strict=True))}
    made = compile_launch(
        Launch(
            operator="tensorrt",
            example=program.kernel.__name__,
            kernel=program.kernel,
            signature={name: signature[name] for name in names},
            constants=program.constants,
            aligned=frozenset(name for name, kind in signature.items() if kind.startswith("*")),
            grid=(),
            warps=program.warps,
            stages=program.stages,
        ),
        architecture,
    )
    if made.shared > _MOST_SHARED:
        raise WsssError(
            f"{made.kernel} takes {made.shared} bytes of shared memory", why=f"a plugin has {_MOST_SHARED}"
        )
    return made.kernel, without_scratch(made.ptx), made.shared


def without_scratch(ptx: str) -> str:
    """PTX without the two pointers that Triton appends to every kernel and TensorRT would not pass.

    Raises:
        WsssError: the kernel uses them.
    """
    head = re.search(r"\.entry\s+\w+\(([^)]*)\)", ptx)
    if head is None:
        raise WsssError("Triton's PTX has no entry")
    parameters = head[1].split(",")
    for parameter in parameters[-2:]:
        name = parameter.split()[-1]
        if len(re.findall(rf"\b{name}\b", ptx)) > 1:
            raise WsssError("a kernel takes scratch memory", why="TensorRT passes none to a plugin")
    kept = ",".join(parameters[:-2]).rstrip() + "\n"
    return ptx[: head.start(1)] + kept + ptx[head.end(1) :]


def _import() -> tuple[Any, Any]:
    try:
        import tensorrt
        import tensorrt.plugin as plugin
    except ImportError as error:
        raise WsssError(
            "TensorRT's plugin interface is not here", why=str(error), fix="install tensorrt 10.7 or later"
        ) from error
    if not hasattr(plugin, "aot_impl"):
        raise WsssError(
            f"TensorRT {tensorrt.__version__} takes no kernels ahead of time",
            fix="install tensorrt 10.7 or later",
        )
    return tensorrt, plugin


def _description(one: Plugin, trt: Any, trtp: Any) -> Callable[..., Any]:
    def describe(*values: Any) -> tuple[Any, ...]:
        tensors = dict(zip(one.inputs, values, strict=False))
        settings = dict(zip(one.attributes, values[len(one.inputs) :], strict=True))
        made = []
        for shape in one.outputs:
            if isinstance(shape, str):
                output = tensors[shape].like()
            else:
                shapes = {name: tensor.shape_expr for name, tensor in tensors.items()}
                output = trtp.from_shape_expr(shape(shapes, settings), dtype=trt.float32)
            made.append(output)
        return tuple(made)

    return _signed(
        describe,
        [*((name, trtp.TensorDesc) for name in one.inputs), *one.attributes.items()],
        tuple[(trtp.TensorDesc,) * len(one.outputs)],  # type: ignore[misc]
    )


def _implementation(one: Plugin, architecture: int, trt: Any, trtp: Any) -> Callable[..., Any]:
    kinds = {trt.float16: "*fp16", trt.bfloat16: "*bf16", trt.float32: "*fp32"}

    def implement(*values: Any) -> tuple[str, str, Any, Any]:
        tensors, outputs = values[: len(one.inputs)], values[-2]
        settings = dict(zip(one.attributes, values[len(one.inputs) : -2], strict=True))
        pointers = [kinds[tensor.dtype] for tensor in tensors]
        shapes = [tensor.shape_expr for tensor in tensors]
        program = one.plan(shapes, pointers, settings, trtp.cdiv)
        name, ptx, shared = compile_program(
            program, pointers, [kinds[output.dtype] for output in outputs], architecture
        )
        launch = trtp.KernelLaunchParams()
        count = program.grid[0]
        for factor in program.grid[1:]:
            count = count * factor
        launch.grid_x = count
        launch.block_x = 32 * program.warps
        launch.shared_mem = shared
        numbers = trtp.SymIntExprs.from_tuple([trtp.SymInt32(number) for number in program.numbers])
        return name, ptx, launch, numbers

    return _signed(
        implement,
        [
            *((name, trtp.TensorDesc) for name in one.inputs),
            *one.attributes.items(),
            ("outputs", tuple[trtp.TensorDesc]),
            ("tactic", int),
        ],
        tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs],
    )


def _signed(
    function: Callable[..., Any], arguments: Sequence[tuple[str, Any]], returned: Any
) -> Callable[..., Any]:
    """A function that says of itself what TensorRT reads from signatures."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=noted) for name, noted in arguments]
    function.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
    return function


def _tile(pointer: str, *, rows: int = 64) -> dict[str, Any]:
    """Tiles whose operands stay within what a plugin may take."""
    side = 32 if pointer == "*fp32" else rows
    return {"ROWS": side, "COLS": 32, "PRECISION": "ieee"}


def _head_dim(shape: Sequence[Any]) -> dict[str, int]:
    width = shape[3] if isinstance(shape[3], int) else shape[3].constant_value()
    return {"D": width, "BLOCK_D": max(16, 1 << (width - 1).bit_length())}


def _plan_attend(shapes: Any, pointers: Any, settings: Any, cdiv: Any) -> Program:
    from wsss_rt.export import plugin_kernels

    batch, heads, tokens, _ = shapes[0]
    tile = _tile(pointers[0])
    constants = {
        "CLASSES": settings["num_class_tokens"],
        "SCALE": settings["scale"] * _LOG2_E,
        **_head_dim(shapes[0]),
        **tile,
    }
    grid = (cdiv(tokens, tile["ROWS"]), batch, heads)
    return Program(plugin_kernels.attend_rows, constants, (heads, tokens), grid)


def _plan_rows(shapes: Any, pointers: Any, settings: Any, cdiv: Any) -> Program:
    from wsss_rt.export import plugin_kernels

    batch, heads, classes, patches = shapes[0]
    constants = {"FACTOR": settings["weight"], "STRIP": _STRIP}
    grid = (cdiv(patches, _STRIP), batch, classes)
    return Program(plugin_kernels.average_rows, constants, (heads, patches, classes), grid)


def _plan_affinity(shapes: Any, pointers: Any, settings: Any, cdiv: Any) -> Program:
    from wsss_rt.export import plugin_kernels

    batch, heads, tokens, _ = shapes[0]
    patches = shapes[4][1]
    tile = _tile(pointers[0])
    constants = {
        "FACTOR": settings["weight"],
        "SCALE": settings["scale"] * _LOG2_E,
        **_head_dim(shapes[0]),
        **tile,
    }
    grid = (cdiv(patches, tile["ROWS"]), cdiv(patches, tile["COLS"]), batch)
    return Program(plugin_kernels.add_affinity, constants, (heads, tokens, tokens - patches), grid)


def _plan_propagate(shapes: Any, pointers: Any, settings: Any, cdiv: Any) -> Program:
    from wsss_rt.export import plugin_kernels

    batch, heads, tokens, _ = shapes[0]
    channels, patches = shapes[2][1], shapes[2][2]
    tile, width = _tile(pointers[0]), 32
    constants = {
        "SCALE": settings["scale"] * _LOG2_E,
        "CHANNELS": width,
        "WEIGHTS": "ieee" if pointers[0] == "*fp32" else "tf32",
        **_head_dim(shapes[0]),
        **tile,
    }
    grid = (cdiv(patches, tile["ROWS"]), cdiv(channels, width), batch)
    numbers = (heads, tokens, tokens - patches, channels)
    return Program(plugin_kernels.propagate_layer, constants, numbers, grid)


def _line(shapes: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Any, ...]:
    batch, heads, tokens, _ = shapes["q"]
    return batch, heads, tokens


def _rows(shapes: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[Any, ...]:
    batch, heads, tokens, _ = shapes["q"]
    classes = settings["num_class_tokens"]
    return batch, heads, classes, tokens - classes


#: Nodes, as ``wsss_rt.kernels`` puts them into graphs.
PLUGINS = (
    Plugin(
        "attend_rows",
        ("q", "k", "v"),
        {"num_class_tokens": int, "scale": float},
        ("v", _line, _line, _rows),
        _plan_attend,
    ),
    Plugin("average_rows", ("rows", "before"), {"weight": float}, ("before",), _plan_rows),
    Plugin(
        "add_affinity",
        ("q", "k", "peak", "share", "before"),
        {"scale": float, "weight": float},
        ("before",),
        _plan_affinity,
    ),
    Plugin(
        "propagate_layer",
        ("q", "k", "maps", "before"),
        {"scale": float},
        ("before",),
        _plan_propagate,
    ),
)
