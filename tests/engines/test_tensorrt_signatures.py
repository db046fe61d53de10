"""The signatures that fakes are held to are those of the real classes, where these are installed."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

from tests.engines.fake_cuda import FakeCuda
from tests.engines.fake_tensorrt import SIGNATURES, VERSIONS, fake_tensorrt
from tests.engines.tensorrt_signatures import signatures_of, stand_in

MODULES = ("tensorrt", "tensorrt_lean", "tensorrt_lean_bindings", "tensorrt_bindings")


# what wsss-rt calls
USED = {
    "ICudaEngine": ("get_tensor_name", "get_tensor_mode", "get_tensor_dtype", "get_tensor_profile_shape"),
    "IExecutionContext": (
        "set_optimization_profile_async",
        "set_input_shape",
        "set_tensor_address",
        "infer_shapes",
        "get_tensor_shape",
        "set_output_allocator",
        "update_device_memory_size_for_shapes",
        "set_device_memory",
        "execute_async_v3",
    ),
    "Runtime": ("__init__",),
    "OnnxParser": ("__init__", "parse", "get_error"),
    "IBuilderConfig": (
        "set_memory_pool_limit",
        "clear_flag",
        "set_preview_feature",
        "add_optimization_profile",
        "create_timing_cache",
        "set_timing_cache",
        "get_timing_cache",
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_they_are_those_of_the_installed_classes(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    if name == "tensorrt_bindings":
        for major in (10, 11):
            stand_in(tmp_path, major)
    module = importlib.import_module(name)
    found = signatures_of(module)
    key = f"{name.removesuffix('_bindings')} {module.__version__}"
    if key in SIGNATURES:
        assert found == SIGNATURES[key]
        return
    # another release: what is called must be as it is in the one that is known
    nearest = SIGNATURES[f"tensorrt {VERSIONS[0 if module.__version__.startswith('10.') else -1]}"]
    for title, spec in found["classes"].items():
        for method in USED.get(title, ()):
            assert spec["methods"].get(method) == nearest["classes"][title]["methods"][method], (
                title,
                method,
            )


@pytest.mark.parametrize("version", VERSIONS)
def test_the_fake_refuses_what_the_real_one_would(version: str) -> None:
    cuda = FakeCuda()
    trt = fake_tensorrt(cuda, version)
    cuda.contexts.stack = [object()]

    class Log(trt.ILogger):
        pass

    builder = trt.Builder(Log())
    config = builder.create_builder_config()
    with pytest.raises(TypeError, match="set_memory_pool_limit does not take"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
    with pytest.raises(AttributeError, match="has no IBuilderConfig.max_workspace_size"):
        config.max_workspace_size = 1
    with pytest.raises(TypeError, match="create_network does not take"):
        builder.create_network(precision="float16")


def test_version_11_has_no_precision_flags_and_10_has() -> None:
    old, new = (set(SIGNATURES[f"tensorrt {version}"]["enums"]["BuilderFlag"]) for version in VERSIONS)
    assert {"FP16", "BF16", "INT8"} <= old and not {"FP16", "BF16", "INT8"} & new
    assert "TF32" in old & new
