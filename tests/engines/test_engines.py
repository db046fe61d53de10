"""Both engines: the model's numbers at any size, the same bits in any company, failures with their class."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.label_models import color_card
from wsss_rt.engines import Engine, open_engine
from wsss_rt.engines.runtime import default_threads, engine_error
from wsss_rt.errors import ImageError, WsssError
from wsss_rt.model_card import seal

BACKENDS = ("onnxruntime", "openvino")


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


@pytest.fixture
def engine(backend: str, color_model: Path) -> Iterator[Engine]:
    opened = open_engine(color_model, backend=backend)
    yield opened
    opened.close()


def test_maps_and_scores_are_those_of_the_graph(engine: Engine) -> None:
    images = np.full((1, 3, 20, 33), -1.0, np.float32)
    images[:, 1, 8:, 16:] = 3.0
    output = engine.infer(images)
    assert output.maps.shape == (1, 3, 2, 4) and output.maps.dtype == np.float32
    assert output.scores.shape == (1, 3) and output.scores.dtype == np.float32
    # green minus half of the two others, minus the bias, in the two tokens that hold it
    np.testing.assert_allclose(output.maps[0, 1], [[0, 0, 0, 0], [0, 0, 3.5, 3.5]], atol=1e-6)
    np.testing.assert_allclose(output.scores[0, 1], 3.5, atol=1e-6)


def test_a_result_stays_what_it_was_after_the_next_call(engine: Engine) -> None:
    first = engine.infer(noise(1, 3, 32, 32, seed=1))
    maps, scores = first.maps.copy(), first.scores.copy()
    engine.infer(noise(1, 3, 32, 32, seed=2))
    assert np.array_equal(first.maps, maps) and np.array_equal(first.scores, scores)


@pytest.mark.parametrize(
    "images",
    [noise(3, 32, 32), noise(1, 1, 32, 32), noise(1, 3, 32, 32).astype(np.float64), noise(0, 3, 32, 32)],
    ids=["no batch", "one channel", "float64", "empty batch"],
)
def test_arrays_of_another_kind_are_a_mistake_of_the_caller(
    engine: Engine, images: NDArray[np.float32]
) -> None:
    with pytest.raises(ValueError, match="float32"):
        engine.infer(images)


def test_an_image_smaller_than_a_token_is_refused(engine: Engine) -> None:
    with pytest.raises(ImageError) as caught:
        engine.infer(noise(1, 3, 7, 100))
    assert caught.value.code == "too_small"
    assert "100x7" in str(caught.value)


def write_graph(path: Path, extra: Callable[..., list[object]]) -> Path:
    """An artifact whose scores are the channel means, and whose maps come from ``extra``."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["scores"]),
        *extra(helper),
    ]
    ints = {"four": [-1, 3, 4, 4], "huge": [1, 1, 1 << 20, 1 << 20], "axes": [2, 3]}
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("images", kind.FLOAT, ["batch", 3, "height", "width"])],
        [
            helper.make_tensor_value_info("scores", kind.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("maps", kind.FLOAT, ["batch", 3, "rows", "columns"]),
        ],
        [helper.make_tensor(name, kind.INT64, [len(values)], values) for name, values in ints.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(seal(model.SerializeToString(), color_card()))
    return path


def test_a_failure_inside_the_library_is_an_error_of_that_image(backend: str, tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "fails.onnx", lambda helper: [helper.make_node("Reshape", ["images", "four"], ["maps"])]
    )
    engine = open_engine(path, backend=backend)
    # 16 pixels divide by the reshape, 9 x 11 do not
    with pytest.raises(ImageError) as caught:
        engine.infer(noise(1, 3, 9, 11))
    assert caught.value.code == "engine"
    assert backend in str(caught.value) and "11x9" in str(caught.value)
    assert engine.infer(noise(1, 3, 8, 10)).maps.shape == (5, 3, 4, 4)


def test_running_out_of_memory_has_its_own_class(backend: str, tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "huge.onnx",
        lambda helper: [
            helper.make_node("Shape", ["images"], ["shape"]),
            helper.make_node("Mul", ["shape", "huge"], ["grown"]),
            helper.make_node("ConstantOfShape", ["grown"], ["zeros"]),
            helper.make_node("ReduceMax", ["zeros", "axes"], ["peak"], keepdims=1),
            helper.make_node("Add", ["images", "peak"], ["maps"]),
        ],
    )
    engine = open_engine(path, backend=backend)
    with pytest.raises(ImageError) as caught:
        engine.infer(noise(1, 3, 16, 16))
    assert caught.value.code == "out_of_memory"


def test_a_dead_device_is_no_error_of_one_image() -> None:
    error = engine_error(
        RuntimeError("CUDA error: an illegal memory access was encountered"), "x", (1, 3, 8, 8)
    )
    assert not isinstance(error, ImageError)
    assert error.code == "device_lost"


def test_a_graph_that_the_library_refuses_is_named(backend: str, tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "strange.onnx",
        lambda helper: [helper.make_node("Imaginary", ["images"], ["maps"], domain="not.a.domain")],
    )
    with pytest.raises(WsssError) as caught:
        open_engine(path, backend=backend)
    assert caught.value.code == "engine_load"
    assert "Imaginary" in str(caught.value) or "not.a.domain" in str(caught.value)


def test_threads_default_to_what_the_process_may_use() -> None:
    import os

    assert 1 <= default_threads() <= len(os.sched_getaffinity(0))


_SIGNALS_BETWEEN_ENGINES = """
import signal, subprocess, sys
from pathlib import Path
from wsss_rt.engines import open_engine
caught = []
signal.signal(signal.SIGCHLD, lambda number, frame: caught.append(number))
engines = [open_engine(Path(sys.argv[1]), backend=sys.argv[2]) for _ in range(3)]
while engines:
    engines.pop(0).close()
    subprocess.run([sys.executable, "-S", "-c", ""])
assert caught
"""


def test_signals_find_their_stack_whatever_order_engines_go_in(backend: str, color_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALS_BETWEEN_ENGINES, str(color_model), backend], check=False
    )
    assert done.returncode == 0


class OlderProcessor:
    """OpenVINO's core as it answers where the processor has no bfloat16, or where the plugin ignores it."""

    def __init__(self, core: Any, *, capabilities: tuple[str, ...], running: str) -> None:
        self._core, self._capabilities, self._running = core, capabilities, running

    def get_property(self, device: str, name: str) -> Any:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return list(self._capabilities)

    def read_model(self, **given: Any) -> Any:
        return self._core.read_model(**given)

    def compile_model(self, graph: Any, device: str, config: dict[str, Any]) -> Any:
        return self._core.compile_model(graph, device, config | {"INFERENCE_PRECISION_HINT": self._running})


@pytest.mark.parametrize(
    ("capabilities", "why"), [(("FP32", "INT8"), "BF16"), (("FP32", "BF16"), "computes in f32")]
)
def test_a_precision_that_the_processor_does_not_have_is_refused_in_one_line(
    color_model: Path, monkeypatch: pytest.MonkeyPatch, capabilities: tuple[str, ...], why: str
) -> None:
    pytest.importorskip("openvino")
    from wsss_rt.engines import openvino

    core = OlderProcessor(openvino.shared_core(), capabilities=capabilities, running="f32")
    monkeypatch.setattr(openvino, "shared_core", lambda: core)
    assert open_engine(color_model, backend="openvino").precision == "float32"
    with pytest.raises(WsssError) as caught:
        open_engine(color_model, precision="bfloat16")
    assert caught.value.code == "precision_unavailable" and why in str(caught.value)
    assert "drop --precision" in str(caught.value) and "\n" not in str(caught.value)


def test_the_start_of_an_engine_says_what_it_took(engine: Engine) -> None:
    assert {"read", "import", "build"} == set(engine.choice["seconds"])
    assert min(engine.choice["seconds"].values()) >= 0
