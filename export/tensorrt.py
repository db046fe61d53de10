"""An artifact to a TensorRT plan, for the GPU that it is built on.

Written against the API of TensorRT 10 and 11 as documented below
https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/_static/python-api/ (``infer/Core/Builder.html``,
``BuilderConfig.html``, ``OptimizationProfile.html``; ``parsers/Onnx/pyOnnx.html``). Version 11 types networks
strongly and has no flags for precision; version 10 is asked to do the same, so that both run the graph that
:mod:`wsss_rt.export.typed_graph` made, and nothing else decides what is computed in what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wsss_rt.engines.tensorrt_library import library, make_log
from wsss_rt.engines.tensorrt_profiles import Profile
from wsss_rt.errors import WsssError
from wsss_rt.export.typed_graph import Precision, typed_graph

# of what is free: weights and the builder's own copies have to fit beside it
_WORKSPACE_SHARE = 0.5
_OPTIMIZATION_LEVEL = 3


@dataclass(frozen=True)
class Plan:
    """What the builder made.

    Attributes:
        data: the serialised engine.
        timing_cache: what kernels took, for the next build on this GPU; no code.
        seconds: that it took.
    """

    data: bytes
    timing_cache: bytes
    seconds: float


def build_plan(
    artifact: bytes,
    *,
    precision: str,
    profiles: Sequence[Profile],
    free_memory: int,
    workspace: int | None = None,
    timing_cache: bytes = b"",
    optimization_level: int = _OPTIMIZATION_LEVEL,
    tell: Callable[[str], None] | None = None,
) -> Plan:
    """Build a plan on the GPU whose context is current.

    Args:
        artifact: bytes of an artifact, or of its graph.
        precision: ``float32`` (without TF32), ``float16`` or ``bfloat16``.
        profiles: at least one; an engine runs shapes within them only.
        free_memory: of the GPU, bytes.
        workspace: most that a kernel may use beside its tensors, bytes; by default half of what is free.
        timing_cache: of an earlier build; one that does not fit this GPU or version is left aside.
        optimization_level: 0 to 5: how long TensorRT may look for faster kernels.
        tell: gets a line where something was left aside.

    Raises:
        UsageError: TensorRT is not installed.
        WsssError: code ``export_failed``: the parser or the builder refuses; with their words.
    """
    started = time.perf_counter()
    trt = library()
    log = make_log(trt)
    if precision not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"no precision {precision!r}")
    wanted: Precision = precision  # type: ignore[assignment]
    graph = typed_graph(artifact, wanted)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        words = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors[:3]]
        raise _refused("TensorRT's parser cannot read the graph", words, log)
    if network.num_inputs != 1:
        raise _refused(f"the network has {network.num_inputs} inputs, not one", [], log)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(
        trt.MemoryPoolType.WORKSPACE, workspace or int(free_memory * _WORKSPACE_SHARE)
    )
    config.builder_optimization_level = optimization_level
    # on by default, and it keeps ten bits of the mantissa where the parity check speaks of float32
    config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10"):
        # memory of a context then follows the shapes that run, and not the largest of all profiles
        config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    _add_profiles(builder, config, network.get_input(0), profiles, log)
    _attach_timing_cache(config, timing_cache, tell, log)
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        raise _refused("TensorRT cannot build the plan", [], log)
    measured = config.get_timing_cache().serialize()
    return Plan(bytes(memory), bytes(measured), time.perf_counter() - started)


def _network_flags(trt: Any) -> int:
    """Strong typing has to be asked for in version 10 and is the only kind in 11, which ignores the flag."""
    if int(str(trt.__version__).split(".")[0]) >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _add_profiles(builder: Any, config: Any, tensor: Any, profiles: Sequence[Profile], log: Any) -> None:
    shape = tuple(tensor.shape)
    for wanted in profiles:
        entry = wanted.within(shape)
        profile = builder.create_optimization_profile()
        try:
            profile.set_shape(tensor.name, entry.min, entry.opt, entry.max)
        except ValueError as error:
            raise _refused(f"TensorRT refuses the profile {entry.as_dict()}", [str(error)], log) from error
        if config.add_optimization_profile(profile) < 0:
            raise _refused(f"TensorRT refuses the profile {entry.as_dict()}", [], log)


def _attach_timing_cache(config: Any, data: bytes, tell: Callable[[str], None] | None, log: Any) -> None:
    for content in (data, b"") if data else (b"",):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return
        if tell is not None and content:
            tell(f"kernels are timed anew: {log.words('the timing cache is not of this GPU and TensorRT')}")
    raise _refused("TensorRT takes no timing cache", [], log)


def _refused(what: str, words: Sequence[str], log: Any) -> WsssError:
    return WsssError(
        what,
        why="; ".join(words)[:600] or log.words("it gives no reason"),
        fix="use another --precision or --backend, and report this with the output of `wsss-rt doctor`",
        code="export_failed",
    )
