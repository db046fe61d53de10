"""TensorRT's builder and runtime over classes that are as strict as the real ones, and its cache for real."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.fake_cuda import NAME, FakeCuda
from tests.engines.fake_tensorrt import VERSIONS, install
from tests.label_models import color_card, write_color_model
from wsss_rt.assets import embedded_models
from wsss_rt.engines.cuda import Gpu, GpuUnavailable
from wsss_rt.engines.onnxruntime import OnnxRuntimeEngine
from wsss_rt.engines.tensorrt import TensorRtEngine
from wsss_rt.engines.tensorrt_plan import identity, obtain_plan, open_planned
from wsss_rt.engines.tensorrt_profiles import Profile, choose, default_profiles
from wsss_rt.errors import ImageError, UsageError, WsssError
from wsss_rt.export.tensorrt import Plan, build_plan
from wsss_rt.gate_images import gate_images
from wsss_rt.model_card import InputSpec, ModelCard, read_artifact
from wsss_rt.parity import LIMITS

PROFILES = (
    Profile((1, 3, 8, 8), (2, 3, 64, 64), (2, 3, 96, 96)),
    Profile((1, 3, 8, 8), (4, 3, 64, 64), (4, 3, 96, 96)),
    Profile((1, 3, 8, 8), (2, 3, 96, 96), (2, 3, 160, 160)),
)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Any:
    return install(monkeypatch, cuda, request.param)


@pytest.fixture
def trt11(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Any:
    return install(monkeypatch, cuda, VERSIONS[-1])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelCard, bytes]:
    return read_artifact(write_color_model(tmp_path_factory.mktemp("model") / "color.onnx"))


@pytest.fixture(scope="module")
def transformer() -> tuple[ModelCard, bytes]:
    (path,) = embedded_models().values()
    return read_artifact(path)


@pytest.fixture(scope="module")
def expected(artifact: tuple[ModelCard, bytes]) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    return OnnxRuntimeEngine(*artifact).run


def images(batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, height, width), dtype=np.float32)


def plan_of(artifact: bytes, precision: str = "float32", **options: Any) -> Plan:
    with Gpu().active():
        return build_plan(artifact, precision=precision, profiles=PROFILES, free_memory=1 << 30, **options)


def opened(
    artifact: tuple[ModelCard, bytes], *, precision: str = "float32", **options: Any
) -> TensorRtEngine:
    card, data = artifact
    return TensorRtEngine(card, plan_of(data, precision).data, precision=precision, **options)


def agree(got: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...], precision: str = "float32") -> None:
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= LIMITS[precision].maps * np.abs(theirs).max()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_plan_gives_what_the_model_gives(trt: Any, transformer: Any, precision: str) -> None:
    engine = opened(transformer, precision=precision)
    expected = OnnxRuntimeEngine(*transformer).run
    # one image, a pair, a batch beyond the largest profile, another bucket, and sizes that return
    for batch, height, width in (
        (1, 64, 64),
        (2, 64, 71),
        (11, 37, 90),
        (2, 150, 121),
        (2, 64, 71),
        (1, 64, 64),
    ):
        given = images(batch, height, width, seed=batch)
        agree(engine.run(given), expected(given), precision)
    engine.close()


def test_the_graph_says_what_is_computed_in_what_and_nothing_else_does(trt: Any, artifact: Any) -> None:
    import onnx

    plan_of(artifact[1], "float16")
    plan_of(artifact[1], "float32", workspace=12345)
    half, full = trt.built
    assert onnx.TensorProto.FLOAT16 in half["types"] and onnx.TensorProto.FLOAT16 not in full["types"]
    for built in trt.built:
        config = built["config"]
        # TF32 is the one flag that would change float32, and it is on by default
        assert config._cleared == {trt.BuilderFlag.TF32}
        assert [tuple(map(tuple, shapes)) for shapes in config._profiles] == [
            (entry.min, entry.opt, entry.max) for entry in PROFILES
        ]
    assert half["config"]._limits == {trt.MemoryPoolType.WORKSPACE: 1 << 29}
    assert full["config"]._limits == {trt.MemoryPoolType.WORKSPACE: 12345}


def test_a_timing_cache_is_used_again_and_a_strange_one_left_aside(trt: Any, artifact: Any) -> None:
    said: list[str] = []
    first = plan_of(artifact[1], tell=said.append)
    plan_of(artifact[1], timing_cache=first.timing_cache, tell=said.append)
    assert trt.built[1]["config"]._cache._content == first.timing_cache and not said
    plan_of(artifact[1], timing_cache=b"of another GPU", tell=said.append)
    assert trt.built[2]["config"]._cache._content == b"" and len(said) == 1 and "timed anew" in said[0]


def test_a_parser_that_refuses_names_the_node(
    trt11: Any, transformer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsss_rt.export.typed_graph._count_in_integers", lambda graph: None)
    with pytest.raises(WsssError, match="cannot read the graph. Range .*float inputs must be init"):
        plan_of(transformer[1])


def test_repeated_shapes_run_as_cuda_graphs_and_new_ones_do_not(
    cuda: FakeCuda, trt11: Any, artifact: Any, expected: Any
) -> None:
    engine = opened(artifact, lanes=1)
    for turn in range(4):
        for size in ((64, 64), (40, 72)):
            given = images(2, *size, seed=turn)
            before = cuda.launches.count("graph")
            agree(engine.run(given), expected(given))
            # first launch by launch, then once more while it is recorded, then by the graph
            assert cuda.launches.count("graph") - before == (1 if turn >= 2 else 0)
    # a larger shape moves the memory: what was recorded with the old addresses is not started again
    large = images(2, 96, 96)
    agree(engine.run(large), expected(large))
    before = cuda.launches.count("graph")
    given = images(2, 64, 64, seed=9)
    agree(engine.run(given), expected(given))
    assert cuda.launches.count("graph") == before
    given = images(2, 64, 64, seed=10)
    agree(engine.run(given), expected(given))
    assert cuda.launches.count("graph") == before + 1
    assert engine.graphs_unused() == ""
    engine.close()
    assert cuda.heap == {} and cuda.graphs == {}


def test_where_nothing_can_be_recorded_it_runs_launch_by_launch(
    cuda: FakeCuda, trt11: Any, artifact: Any, expected: Any
) -> None:
    cuda.libcuda.refuse = True
    engine = opened(artifact, lanes=1)
    for turn in range(3):
        given = images(1, 64, 64, seed=turn)
        agree(engine.run(given), expected(given))
    assert "not permitted" in engine.graphs_unused()
    assert "graph" not in cuda.launches


def test_outputs_whose_shape_is_known_only_afterwards(trt11: Any, artifact: Any, expected: Any) -> None:
    trt11.dynamic_outputs = True
    engine = opened(artifact)
    for size in ((64, 64), (64, 64), (90, 40), (64, 64)):
        given = images(2, *size)
        agree(engine.run(given), expected(given))


def test_threads_share_the_lanes(trt11: Any, artifact: Any, expected: Any) -> None:
    engine = opened(artifact, lanes=2)
    given = [images(3, 48, 40 + 8 * index, seed=index) for index in range(6)]
    found: list[Any] = [None] * len(given)

    def work(index: int) -> None:
        for _ in range(3):
            found[index] = engine.run(given[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, batch in zip(found, given, strict=True):
        agree(got, expected(batch))


def test_a_size_outside_of_the_plan_is_one_images_error(trt11: Any, artifact: Any, expected: Any) -> None:
    engine = opened(artifact)
    with pytest.raises(ImageError, match="400x64 px is outside of what the TensorRT plan was built for"):
        engine.run(images(1, 64, 400))
    given = images(1, 64, 64)
    agree(engine.run(given), expected(given))


def test_memory_that_runs_out_halves_the_batch_and_is_remembered(
    cuda: FakeCuda, trt11: Any, artifact: Any, expected: Any
) -> None:
    engine = opened(artifact, lanes=1)
    single = images(1, 64, 64)
    engine.run(single)
    # enough for two images and not for four
    cuda.capacity = 2 * 64 * single.size + 2**19
    given = images(4, 64, 64)
    agree(engine.run(given), expected(given))
    before = cuda.launches.count("run")
    agree(engine.run(given), expected(given))
    assert cuda.launches.count("run") - before >= 2
    cuda.capacity = 0
    with pytest.raises(ImageError, match="out of memory") as caught:
        engine.run(images(1, 150, 150))
    assert caught.value.code == "out_of_memory"


def test_a_failed_run_costs_one_image_and_a_lost_device_ends_it(
    cuda: FakeCuda, trt11: Any, artifact: Any, expected: Any
) -> None:
    engine = opened(artifact)
    trt11.fail_execute = "a kernel said no"
    with pytest.raises(ImageError, match="tensorrt failed on an input of 64x64 px. a kernel said no"):
        engine.run(images(1, 64, 64))
    given = images(1, 64, 64)
    agree(engine.run(given), expected(given))
    cuda.poison = "cuStreamSynchronize failed: an illegal memory access was encountered"
    with pytest.raises(WsssError) as caught:
        engine.run(given)
    assert caught.value.code == "device_lost"


def test_a_plan_of_another_version_is_one_line(
    cuda: FakeCuda, trt11: Any, artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = plan_of(artifact[1]).data
    install(monkeypatch, cuda, VERSIONS[0])
    with pytest.raises(
        WsssError, match=f"cannot load the plan. serialized engine of {VERSIONS[-1]}"
    ) as caught:
        TensorRtEngine(artifact[0], data, precision="float32")
    assert caught.value.code == "engine_load" and "\n" not in str(caught.value)


def test_a_plan_of_another_model_is_refused(trt11: Any, artifact: Any) -> None:
    from dataclasses import replace

    card = replace(artifact[0], outputs=("affinity",))
    with pytest.raises(WsssError, match="is not this model's. it takes images and gives scores, maps"):
        TensorRtEngine(card, plan_of(artifact[1]).data, precision="float32")


def test_a_plan_is_built_once_and_anew_for_another_gpu_or_version(
    cuda: FakeCuda, trt11: Any, artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, data = artifact
    said: list[str] = []

    def get(gpu: Gpu | None = None) -> Any:
        return obtain_plan(
            card, data, gpu=gpu or Gpu(), precision="float16", tell=said.append, check=None, profiles=PROFILES
        )

    assert get().built and len(said) == 1 and NAME in said[0]
    assert not get().built and len(said) == 1
    other = Gpu()
    other.name = "NVIDIA Other 1"
    assert get(other).built
    assert "device name NVIDIA Imaginary 100, not NVIDIA Other 1" in said[-1]
    assert not get().built, "the first one's plan is still there"
    # kernels that were timed once are not timed again
    assert trt11.built[-1]["config"]._cache._content == b""
    install(monkeypatch, cuda, VERSIONS[0])
    assert get().built
    assert f"library tensorrt {VERSIONS[-1]}, not {VERSIONS[0]}" in said[-1]


def test_a_plan_that_was_changed_is_never_loaded(trt11: Any, artifact: Any) -> None:
    card, data = artifact
    said: list[str] = []
    gpu = Gpu()

    def get() -> Any:
        return obtain_plan(
            card, data, gpu=gpu, precision="float32", tell=said.append, check=None, profiles=PROFILES
        )

    path = get().path
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    found = get()
    assert found.built and "was changed or cut short" in said[-1] and "not loaded" in said[-1]
    assert found.data != bytes(changed)
    # the timings are a file of their own, and losing them costs time alone
    assert trt11.built[-1]["config"]._cache._content == b"timings of " + VERSIONS[-1].encode()


def test_a_refused_parity_is_remembered(trt11: Any, artifact: Any) -> None:
    card, data = artifact
    said: list[str] = []

    def get() -> Any:
        return obtain_plan(
            card,
            data,
            gpu=Gpu(),
            precision="bfloat16",
            tell=said.append,
            check=lambda plan: {"passed": False, "summary": "masks differ by 2e-2, limit 5e-3"},
            profiles=PROFILES,
        )

    for _ in range(2):
        with pytest.raises(WsssError, match="masks differ by 2e-2") as caught:
            get()
        assert caught.value.code == "parity_failed"
    assert len(trt11.built) == 1


def test_identity_names_what_a_plan_depends_on(trt11: Any, artifact: Any) -> None:
    found = identity(artifact[0], Gpu(), VERSIONS[-1], "float16").as_dict()
    assert found["artifact"] == artifact[0].weights_sha256
    assert found["device"] == {"name": NAME, "compute_capability": "9.0"}
    assert found["library"] == {"tensorrt": VERSIONS[-1]}
    assert found["precision"] == "float16"
    assert all(set(entry) == {"min", "opt", "max"} for entry in found["shapes"].values())


def test_without_a_driver_it_is_one_line(artifact: Any) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a driver")
    with pytest.raises(GpuUnavailable, match="TensorRT needs a GPU of NVIDIA") as caught:
        TensorRtEngine(artifact[0], b"", precision="float32")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_without_pycuda_it_says_how_to_get_it(
    artifact: Any, monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda
) -> None:
    cuda.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver")
    with pytest.raises(GpuUnavailable, match="CPATH, and libcuda and libcurand on LIBRARY_PATH"):
        TensorRtEngine(artifact[0], b"", precision="float32")


def test_an_unknown_tensorrt_is_refused(trt11: Any, artifact: Any) -> None:
    trt11.__version__ = "12.1.0"
    with pytest.raises(UsageError, match="TensorRT 12.1.0 is not supported"):
        TensorRtEngine(artifact[0], b"", precision="float32")


def test_the_runtime_needs_neither_torch_nor_onnx(tmp_path: Path) -> None:
    code = (
        "import sys, wsss_rt.engines.tensorrt, wsss_rt.engines.tensorrt_plan\n"
        "bad = {'torch', 'onnx', 'pycuda', 'tensorrt'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def planned(artifact: Any, said: list[str], **options: Any) -> TensorRtEngine:
    card, data = artifact
    return open_planned(
        card,
        data,
        reference=lambda: OnnxRuntimeEngine(card, data),
        images=lambda: gate_images(None),
        tell=said.append,
        **{"precision": "auto", **options},
    )


def test_the_engine_is_half_precision_if_that_passes(trt11: Any, artifact: Any) -> None:
    said: list[str] = []
    engine = planned(artifact, said)
    assert engine.precision == "float16" and len(said) == 1
    assert engine.choice["parity"]["passed"] and engine.choice["parity"]["against"] == "float32 ONNX Runtime"
    assert engine.choice["plan"]["built"] and Path(engine.choice["plan"]["file"]).is_file()
    again = planned(artifact, said)
    assert not again.choice["plan"]["built"] and again.choice["parity"] == engine.choice["parity"]
    assert len(said) == 1 and len(trt11.built) == 1
    # one that nobody compares is no substitute for one that passed
    unchecked = planned(artifact, said, gate=False)
    assert unchecked.choice["plan"]["built"] and unchecked.choice["parity"] == "left to the caller"


def test_half_precision_that_does_not_pass_is_told_and_left(
    trt11: Any, artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = trt11.Runtime.deserialize_cuda_engine

    def drifting(self: Any, plan: bytes) -> Any:
        engine = exact(self, plan)
        run, half = engine._run, onnx_types(plan) & {10}
        engine._run = lambda images: {
            name: values * (1.5 if half else 1) for name, values in run(images).items()
        }
        return engine

    def onnx_types(plan: bytes) -> set[int]:
        import onnx

        length = int.from_bytes(plan[8:12], "little")
        return {
            entry.data_type for entry in onnx.load_model_from_string(plan[12 + length :]).graph.initializer
        }

    monkeypatch.setattr(trt11.Runtime, "deserialize_cuda_engine", drifting)
    said: list[str] = []
    engine = planned(artifact, said)
    assert engine.precision == "float32"
    assert any("float16 does not do what the model does here; float32 instead" in line for line in said)
    with pytest.raises(WsssError) as caught:
        planned(artifact, said, precision="float16")
    assert caught.value.code == "parity_failed" and "maps" in str(caught.value)


def test_a_cached_plan_that_tensorrt_refuses_is_built_anew_once(
    trt11: Any, artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    planned(artifact, said).close()
    exact, refusals = trt11.Runtime.deserialize_cuda_engine, iter([True])
    monkeypatch.setattr(
        trt11.Runtime,
        "deserialize_cuda_engine",
        lambda self, plan: None if next(refusals, False) else exact(self, plan),
    )
    engine = planned(artifact, said)
    assert engine.choice["plan"]["built"] and any("is built anew" in line for line in said)
    assert len(trt11.built) == 2


def test_a_quantised_model_is_refused(trt11: Any, artifact: Any) -> None:
    from dataclasses import replace

    with pytest.raises(UsageError, match="this one is quantised"):
        planned((replace(artifact[0], precision="int8"), artifact[1]), [])


def test_the_command_line_builds_and_then_labels(
    trt11: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from wsss_rt.cli.export_plan import as_text, export_plan
    from wsss_rt.engines import open_engine

    model = write_color_model(tmp_path / "color.onnx")
    report = export_plan(model, precision="", images=None)
    assert report["built"] and report["precision"] == "float16" and report["parity"]["passed"]
    assert f"label ./images --model {model} --backend tensorrt" in as_text(report, model)
    assert NAME in capsys.readouterr().err
    engine = open_engine(model, backend="tensorrt")
    assert not engine.choice["plan"]["built"] and engine.device == "cuda:0"
    assert engine.choice["precision"] == "float16" and engine.choice["parity"]["passed"]
    assert engine.infer(images(2, 64, 64)).maps.shape == (2, 3, 8, 8)


def test_products_are_a_model_with_a_fixed_side(trt11: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsss_rt.benchmark.product_model import ROWS, SIDE, product_model

    monkeypatch.setattr("wsss_rt.benchmark.product_model.CHAIN", 1)
    data = product_model()
    with Gpu().active():
        plan = build_plan(
            data,
            precision="float32",
            profiles=default_profiles(color_card(input=InputSpec(patch=1))),
            free_memory=1 << 30,
        )
    engine = TensorRtEngine(color_card(), plan.data, precision="float32")
    seconds = engine.time_device(np.zeros((1, 3, ROWS, SIDE), np.float32), 1)
    assert len(seconds) == 1 and min(seconds) > 0


class TestProfiles:
    def test_a_pair_a_batch_and_a_large_image_each_find_theirs(self) -> None:
        profiles = default_profiles(color_card())
        pair, most = choose(profiles, 2, 224, 224)
        assert profiles[pair].max[0] == 2 and profiles[pair].max[2] < 300 and most == 2
        batch, most = choose(profiles, 20, 224, 224)
        assert profiles[batch].max[0] >= 20 and most == 20
        # more than any holds: in parts of the largest
        assert choose(profiles, 500, 224, 224) == (batch, profiles[batch].max[0])
        medium, _ = choose(profiles, 1, 375, 500)
        assert 500 <= profiles[medium].max[3] < 1000
        large, most = choose(profiles, 8, 1024, 1024)
        assert profiles[large].max[2] >= 1024 and most == 2

    def test_a_panorama_of_the_largest_area_fits(self) -> None:
        profiles = default_profiles(color_card())
        choose(profiles, 2, 1490, 700)
        with pytest.raises(ImageError, match="its sides go from 8 to") as caught:
            choose(profiles, 2, 5000, 200)
        assert caught.value.code == "too_large"

    def test_a_model_of_one_size_gets_that_size(self) -> None:
        fixed = default_profiles(color_card(input=InputSpec(patch=8, size_policy="fixed", size=448)))
        assert {entry.max[2:] for entry in fixed} == {(448, 448)} == {entry.min[2:] for entry in fixed}
        windows = default_profiles(color_card(input=InputSpec(patch=8, window=512)))
        assert {entry.max[2:] for entry in windows} == {(512, 512)}
        choose(windows, 1, 100, 512)
