"""TensorRT without TensorRT, for tests: ONNX Runtime computes, and the classes offer what the real ones do.

Every class takes its methods, their parameters and its attributes from ``tensorrt_signatures.json``, which
was read from the real bindings: a call that TensorRT would not understand fails here too, in the version that
is played.
"""

from __future__ import annotations

import enum
import inspect
import json
import sys
from collections.abc import Callable
from functools import wraps
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.engines.fake_cuda import CAPABILITY, FakeCuda

SIGNATURES = json.loads(Path(__file__).with_name("tensorrt_signatures.json").read_text())
VERSIONS = tuple(key.split()[1] for key in SIGNATURES if key.startswith("tensorrt "))
_MAGIC = b"FAKEPLAN"


def strict(known: dict[str, Any], name: str, version: str) -> Callable[[type], type]:
    """Hold a class to what the real one of that name offers."""
    spec = known["classes"][name]

    def wrap(made: type) -> type:
        for attribute, value in list(vars(made).items()):
            if attribute.startswith("_") and attribute != "__init__":
                continue
            if isinstance(value, property):
                assert attribute in spec["attributes"], f"TensorRT {version} has no {name}.{attribute}"
            elif callable(value):
                assert attribute in spec["methods"] or attribute == "__init__", f"no {name}.{attribute}"
                setattr(
                    made, attribute, _checked(value, spec["methods"].get(attribute), f"{name}.{attribute}")
                )

        def set_attribute(self: Any, attribute: str, value: Any) -> None:
            if not attribute.startswith("_") and attribute not in spec["attributes"]:
                raise AttributeError(f"TensorRT {version} has no {name}.{attribute}")
            object.__setattr__(self, attribute, value)

        made.__setattr__ = set_attribute  # type: ignore[method-assign,assignment]
        return made

    return wrap


def _checked(function: Callable[..., Any], overloads: list[str] | None, name: str) -> Callable[..., Any]:
    signatures = []
    for text in overloads or ():
        parameters = [
            inspect.Parameter(
                part.rstrip("="),
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None if part.endswith("=") else inspect.Parameter.empty,
            )
            for part in text.split(", ")
            if part
        ]
        signatures.append(inspect.Signature(parameters))

    @wraps(function)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        for signature in signatures:
            try:
                signature.bind(*arguments, **named)
            except TypeError:
                continue
            return function(self, *arguments, **named)
        if overloads is None:
            return function(self, *arguments, **named)
        raise TypeError(f"{name} does not take {arguments} {named}: it takes {overloads}")

    return call


def fake_tensorrt(cuda: FakeCuda, version: str) -> Any:
    """A module that stands for ``tensorrt`` of one of :data:`VERSIONS`.

    Its ``dynamic_outputs`` makes plans whose outputs have no shape before they ran; ``fail_execute`` is the
    text with which the next run is refused; ``built`` holds what each build was given.
    """
    known = SIGNATURES[f"tensorrt {version}"]
    trt: Any = ModuleType("tensorrt")
    trt.__spec__ = ModuleSpec("tensorrt", None)
    trt.__version__, trt.dynamic_outputs, trt.fail_execute, trt.built = version, False, "", []
    for name, members in known["enums"].items():
        if "." not in name:
            setattr(trt, name, enum.IntEnum(name, members, start=0))
    severities = enum.IntEnum("Severity", known["enums"]["ILogger.Severity"], start=0)

    class ILogger:
        Severity = severities

    class IOutputAllocator:
        pass

    @strict(known, "ITensor", version)
    class ITensor:
        def __init__(self, value: Any) -> None:
            self._name = value.name
            dims = value.type.tensor_type.shape.dim
            self._dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]

        @property
        def shape(self) -> tuple[int, ...]:
            return tuple(self._dims)

        @property
        def name(self) -> str:
            return self._name

    @strict(known, "INetworkDefinition", version)
    class INetworkDefinition:
        def __init__(self) -> None:
            self._model = b""

        @property
        def num_inputs(self) -> int:
            return len(onnx.load_model_from_string(self._model).graph.input)

        def get_input(self, index: int) -> ITensor:
            return ITensor(onnx.load_model_from_string(self._model).graph.input[index])

    @strict(known, "ITimingCache", version)
    class ITimingCache:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> memoryview:
            return memoryview(b"timings of " + version.encode())

    @strict(known, "IOptimizationProfile", version)
    class IOptimizationProfile:
        def __init__(self) -> None:
            self._shapes: list[list[int]] = []

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            self._shapes = [list(min), list(opt), list(max)]

    @strict(known, "IBuilderConfig", version)
    class IBuilderConfig:
        def __init__(self) -> None:
            self._profiles: list[Any] = []
            self._limits: dict[Any, int] = {}
            self._cleared: set[Any] = set()
            self._preview: dict[Any, bool] = {}
            self._cache: Any = None
            self.builder_optimization_level = 3

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self._limits[trt.MemoryPoolType(pool)] = pool_size

        def clear_flag(self, flag: Any) -> None:
            self._cleared.add(trt.BuilderFlag(flag))

        def set_preview_feature(self, feature: Any, enable: bool) -> None:
            self._preview[trt.PreviewFeature(feature)] = enable

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles.append(profile._shapes)
            return len(self._profiles) - 1 if profile._shapes else -1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            return ITimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            fits = cache._content in (b"", b"timings of " + version.encode())
            self._cache = cache if fits or ignore_mismatch else self._cache
            return fits or ignore_mismatch

        def get_timing_cache(self) -> Any:
            return self._cache

    @strict(known, "Builder", version)
    class Builder:
        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            cuda.check()
            self._logger = logger

        def create_network(self, flags: int = 0) -> Any:
            if version.startswith("10.") and flags != 1 << int(
                trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
            ):
                raise AssertionError("TensorRT 10 would choose precisions by itself")
            return INetworkDefinition()

        def create_builder_config(self) -> Any:
            return IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            assert config._cache is not None and config._profiles
            for shapes in config._profiles:
                for sides, fixed in zip(zip(*shapes, strict=True), network.get_input(0).shape, strict=True):
                    assert fixed < 0 or set(sides) == {fixed}, "a profile beside the graph's fixed sides"
            model = onnx.load_model_from_string(network._model)
            types = {tensor.data_type for tensor in model.graph.initializer}
            if onnx.TensorProto.FLOAT16 in types and trt.fail_execute == "no half":
                self._logger.log(severities.ERROR, "no kernel for half")
                return None
            trt.built.append({"config": config, "types": types, "model": network._model})
            header = {"version": version, "profiles": config._profiles, "device": list(CAPABILITY)}
            text = json.dumps(header).encode()
            return memoryview(_MAGIC + len(text).to_bytes(4, "little") + text + network._model)

    @strict(known, "ParserError", version)
    class ParserError:
        def __init__(self, text: str, node: Any) -> None:
            self._text, self._node = text, node

        def desc(self) -> str:
            return self._text

        def node_name(self) -> str:
            return str(self._node.name)

        def node_operator(self) -> str:
            return str(self._node.op_type)

    @strict(known, "OnnxParser", version)
    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._errors = network, []

        def parse(self, model: bytes) -> bool:
            graph = onnx.load_model_from_string(model)
            onnx.checker.check_model(graph, full_check=True)
            constants = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
            for node in graph.graph.node:
                # as documented: floats only where they are constants
                if node.op_type == "Range" and onnx.TensorProto.FLOAT in map(constants.get, node.input):
                    self._errors.append(ParserError("float inputs must be initializers", node))
            self._network._model = model
            return not self._errors

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> Any:
            return self._errors[index]

    @strict(known, "IExecutionContext", version)
    class IExecutionContext:
        def __init__(self, engine: Any) -> None:
            self._engine = engine
            self._profile, self._shape, self._settled = 0, None, False
            self._addresses: dict[str, int] = {}
            self._allocators: dict[str, Any] = {}
            self._arena = (0, 0)

        @property
        def active_optimization_profile(self) -> int:
            return self._profile

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            self._profile, self._shape = profile_index, None
            return profile_index < len(self._engine._profiles)

        def set_input_shape(self, name: str, shape: Any) -> bool:
            low, _, high = self._engine._profiles[self._profile]
            if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                self._engine._log(f"{list(shape)} is not in profile {self._profile}")
                return False
            if self._shape != tuple(shape):
                self._shape, self._settled = tuple(shape), False
            return True

        def infer_shapes(self) -> list[str]:
            return [] if self._shape is not None else [self._engine._input]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            shape = self._engine._shapes(self._shape)[name]
            return (shape[0], -1, *shape[2:]) if trt.dynamic_outputs else shape

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return memory != 0

        def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
            assert isinstance(output_allocator, IOutputAllocator)
            self._allocators[name] = output_allocator
            return True

        def update_device_memory_size_for_shapes(self) -> int:
            return 64 * int(np.prod(self._shape))

        def set_device_memory(self, memory: int, size: int) -> None:
            self._arena = (memory, size)

        def execute_async_v3(self, stream_handle: int) -> bool:
            recording = cuda.streams[stream_handle].recording
            if trt.fail_execute or (recording and not self._settled):
                self._engine._log(trt.fail_execute or "the context has not run since its shape changed")
                trt.fail_execute = ""
                return False
            self._settled = True
            shape, addresses = self._shape, dict(self._addresses)
            shapes = self._engine._shapes(shape)
            for name, allocator in self._allocators.items():
                size = 4 * int(np.prod(shapes[name]))
                addresses[name] = allocator.reallocate_output_async(name, 0, size, 256, stream_handle)
                allocator.notify_shape(name, shapes[name])
            arena, size = self._arena

            def work() -> None:
                assert self._shape == shape, "the context of a graph went on to another shape"
                assert cuda.memory(arena).nbytes >= size
                count = int(np.prod(shape))
                images = cuda.memory(addresses[self._engine._input]).view(np.float32)[:count].reshape(shape)
                for name, values in self._engine._run(images).items():
                    flat = np.ascontiguousarray(values).reshape(-1)
                    cuda.memory(addresses[name]).view(np.float32)[: flat.size] = flat

            cuda.enqueue(stream_handle, "run", work)
            return True

    @strict(known, "ICudaEngine", version)
    class ICudaEngine:
        def __init__(self, header: dict[str, Any], model: bytes, logger: Any) -> None:
            options = ort.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._profiles = header["profiles"]
            self._log = lambda text: logger.log(severities.ERROR, text)
            self._input = self._session.get_inputs()[0].name
            self._names = [self._input, *(entry.name for entry in self._session.get_outputs())]
            self._known_shapes: dict[Any, dict[str, tuple[int, ...]]] = {}

        def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
            return dict(zip(self._names[1:], self._session.run(None, {self._input: images}), strict=True))

        def _shapes(self, shape: Any) -> dict[str, tuple[int, ...]]:
            if shape not in self._known_shapes:
                found = self._run(np.zeros(shape, np.float32))
                self._known_shapes[shape] = {name: values.shape for name, values in found.items()}
            return self._known_shapes[shape]

        @property
        def num_io_tensors(self) -> int:
            return len(self._names)

        @property
        def num_optimization_profiles(self) -> int:
            return len(self._profiles)

        def get_tensor_name(self, index: int) -> str:
            return self._names[index]

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name == self._input else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType.FLOAT

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
            return list(self._profiles[profile_index])

        def create_execution_context(self, strategy: Any) -> Any:
            assert strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
            return IExecutionContext(self)

    @strict(known, "Runtime", version)
    class Runtime:
        def __init__(self, logger: Any) -> None:
            cuda.check()
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            length = int.from_bytes(serialized_engine[8:12], "little")
            header = json.loads(serialized_engine[12 : 12 + length])
            if header["version"] != version:
                self._logger.log(
                    severities.ERROR, f"serialized engine of {header['version']}, not of {version}"
                )
                return None
            return ICudaEngine(header, serialized_engine[12 + length :], self._logger)

    for made in (ILogger, IOutputAllocator, Builder, OnnxParser, Runtime):
        setattr(trt, made.__name__, made)
    return trt


def install(patch: pytest.MonkeyPatch, cuda: FakeCuda, version: str) -> Any:
    """Stand in for pycuda, libcuda and TensorRT for the rest of a test; gives the module."""
    cuda.install(patch)
    trt = fake_tensorrt(cuda, version)
    patch.setitem(sys.modules, "tensorrt", trt)
    return trt
