"""AOTInductor: a compiled MCTformer-V2 that is the model, and packages that this machine cannot run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cli.label_runs import Cli
from wsss_rt.engines import Engine, open_engine
from wsss_rt.engines.batch_limit import BatchLimit
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.labeler import Labeler
from wsss_rt.model_card import read_card

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tests.exported import CLASSES, SIZES, exported, saved_run, tiny_config, tiny_model  # noqa: E402 - needs torch
from tests.label_models import color_card  # noqa: E402
from tests.packages import built_here, write_package  # noqa: E402
from wsss_rt.engines import aotinductor  # noqa: E402
from wsss_rt.export import aotinductor as export  # noqa: E402
from wsss_rt.parity import ParityError  # noqa: E402

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs g++")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, compiled once; that takes most of a minute."""
    path = tmp_path_factory.mktemp("package") / "tiny.pt2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path.parent / "cache"))
        export.export_aotinductor(tiny_model(), tiny_config(), path)
    return path


@pytest.fixture(scope="module")
def engine(package: Path) -> Iterator[Engine]:
    opened = open_engine(package)
    yield opened
    opened.close()


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path, monkeypatch, capsys)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@needs_compiler
@pytest.mark.slow
class TestCompiled:
    """On the CPU, where CI has one."""

    @pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
    def test_equal_to_pytorch_at_any_size(self, engine: Engine, size: tuple[int, int]) -> None:
        images = noise(2, 3, *size)
        with torch.inference_mode():
            scores, maps = (value.numpy() for value in tiny_model()(torch.from_numpy(images)))
        output = engine.infer(images)
        assert output.maps.shape == maps.shape == (2, 4, size[0] // 8, size[1] // 8)
        assert np.abs(output.maps - maps).max() <= 1e-5 * np.abs(maps).max()
        assert np.abs(output.scores - scores).max() <= 1e-5 * np.abs(scores).max()

    def test_an_image_has_the_same_bits_in_any_company(self, engine: Engine) -> None:
        a, b, c = noise(3, 3, 37, 90)
        alone = engine.infer(a[None])
        output = engine.infer(np.stack([c, b, a, b]))
        assert np.array_equal(output.maps[2], alone.maps[0])
        assert np.array_equal(output.scores[2], alone.scores[0])
        mirrored = engine.infer(a[None, :, :, ::-1])
        assert np.array_equal(mirrored.maps, engine.infer(a[None, :, :, ::-1].copy()).maps)

    def test_tensors_go_in_and_come_out(self, engine: Engine) -> None:
        assert isinstance(engine, aotinductor.AotInductorEngine)
        images = torch.from_numpy(noise(2, 3, 64, 71))
        scores, maps = engine.run_tensors(images)
        assert isinstance(maps, torch.Tensor) and maps.shape == (2, 4, 8, 8) and maps.dtype == torch.float32
        assert np.array_equal(maps.numpy(), engine.infer(images.numpy()).maps)
        assert scores.shape == (2, 4)

    @pytest.mark.parametrize(
        "images",
        [
            torch.zeros(1, 4, 64, 64),
            torch.zeros(1, 3, 64, 64).double(),
            torch.zeros(3, 64, 64),
            torch.zeros(1, 3, 4, 64),
        ],
        ids=["channels", "float64", "no batch", "too small"],
    )
    def test_compiled_code_never_sees_an_input_of_another_kind(self, engine: Engine, images: Any) -> None:
        assert isinstance(engine, aotinductor.AotInductorEngine)
        with pytest.raises(ValueError):
            engine.run_tensors(images)

    def test_card_machine_and_parity_are_inside(self, package: Path, engine: Engine) -> None:
        card = read_card(package)
        assert (card.method, card.precision) == ("mctformer-v2", "float32") and card.classes == CLASSES
        assert card.quality["parity"]["passed"] and card.quality["parity"]["images"] >= 8
        assert engine.choice["parity"] == card.quality["parity"]
        assert (engine.backend, engine.device, engine.precision) == ("aotinductor", "cpu", "float32")
        assert engine.choice["picked"] == "aotinductor" and engine.choice["reason"]
        json.dumps(engine.choice)

    def test_label_runs_it_and_says_so(self, package: Path, cli: Cli) -> None:
        images = cli.folder / "images"
        images.mkdir()
        for index in range(3):
            pixels = np.random.default_rng(index).integers(0, 255, (70 + index, 90, 3), dtype=np.uint8)
            cv2.imwrite(str(images / f"{index}.png"), cv2.blur(pixels, (9, 9)))
        ended = cli("label", images, "--model", package, "--out", "out", "--format", "png")
        assert ended.code == 0, ended.err
        run = json.loads((cli.folder / "out" / "run.json").read_text())
        assert run["engine"]["backend"] == "aotinductor" and run["engine"]["precision"] == "float32"
        assert run["engine"]["choice"]["parity"]["passed"] and run["engine"]["choice"]["reason"]
        assert len(list((cli.folder / "out" / "masks").glob("*.png"))) == 3

    def test_bench_measures_it_alone_and_beside_the_onnx_file(self, package: Path, cli: Cli) -> None:
        options = (
            "--seconds",
            "0.01",
            "--limit",
            "2",
            "--size",
            "64x64",
            "--threads",
            "1",
            "--json",
            "now.json",
        )
        ended = cli("bench", package, *options)
        assert ended.code == 0, ended.err
        found = json.loads((cli.folder / "now.json").read_text())
        (engine,) = found["engines"]
        assert engine["name"] == "aotinductor float32" and engine["file"] == "tiny.pt2"
        # what export found when it compiled it
        assert engine["agreement"]["against"] == "float32 PyTorch" and engine["agreement"]["passed"]
        assert [row["flops"] for row in found["rows"] if "flops" in row] == [None]
        assert all(row["agrees"] for row in found["rows"]) and "`--model tiny.pt2`" in ended.out
        onnx = exported().path
        ended = cli("bench", onnx, "--package", package, "--backend", "onnxruntime", *options)
        assert ended.code == 0, ended.err
        found = json.loads((cli.folder / "now.json").read_text())
        assert [engine["name"] for engine in found["engines"]] == [
            "onnxruntime float32",
            "aotinductor float32",
        ]
        for engine in found["engines"]:
            assert engine["agreement"]["against"] == "float32 ONNX Runtime" and engine["agreement"]["passed"]
        assert [row["speed_up"] > 0 for row in found["rows"]] == [True] * 4

    def test_maps_that_stay_in_torch_give_the_masks_that_numpy_gives(self, engine: Engine) -> None:
        equal = pixels = 0
        for index, (height, width) in enumerate(SIZES):
            image = np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8)
            for tags in (None, CLASSES[1:3]):
                host, device = (
                    Labeler(engine=engine, localization=name).label(image, tags=tags)
                    for name in ("numpy", "torch")
                )
                assert host.mask is not None and device.mask is not None, (host.error, device.error)
                assert device.tags == host.tags and device.scores == host.scores
                equal, pixels = equal + int((host.mask == device.mask).sum()), pixels + host.mask.size
        assert equal >= 0.9999 * pixels

    def test_nothing_is_written_when_the_package_is_not_the_model(
        self, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = aotinductor.AotInductorEngine.run

        def wrong(self: Any, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            scores, maps = run(self, images)
            # right for the image, and not for its neighbour in the batch
            return np.roll(scores, 1, axis=0), np.roll(maps, 1, axis=0)

        monkeypatch.setattr(export, "_compile", lambda *_, **__: (package.read_bytes(), False))
        monkeypatch.setattr(aotinductor.AotInductorEngine, "run", wrong)
        with pytest.raises(ParityError):
            export.export_aotinductor(tiny_model(), tiny_config(), tmp_path / "wrong.pt2")
        assert not list(tmp_path.glob("*.pt2"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"torch": "2.9.1+cpu"}, "it was built with torch 2.9.1+cpu, and"),
        ({"platform": "linux aarch64"}, "it was built for linux aarch64, and this is"),
        ({"isa": ("AVX512", "FUTURE9000"), "name": "Tomorrow's"}, "Tomorrow's and uses FUTURE9000"),
    ],
    ids=["torch", "architecture", "instructions"],
)
def test_a_package_for_another_machine_is_refused_before_its_code_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(aotinductor, "_load", lambda *_, **__: pytest.fail("the code was loaded"))
    path = write_package(tmp_path / "m.pt2", built_here(**changes))
    with pytest.raises(WsssError) as caught:
        open_engine(path)
    assert caught.value.code == "other_machine" and words in str(caught.value)
    assert "--to aotinductor" in str(caught.value) and "\n" not in str(caught.value)


def test_a_package_for_a_gpu_says_so_where_there_is_none_or_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = built_here(device="cuda", name="NVIDIA H200", compute_capability="9.0")
    path = write_package(tmp_path / "m.pt2", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WsssError, match="needs an NVIDIA GPU"):
        open_engine(path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A10")
    with pytest.raises(WsssError) as caught:
        open_engine(path)
    assert "NVIDIA H200 (compute capability 9.0), and this is NVIDIA A10 (8.6)" in str(caught.value)


def test_code_that_torch_cannot_load_is_one_line(tmp_path: Path) -> None:
    path = write_package(tmp_path / "m.pt2", built_here())
    with pytest.raises(WsssError) as caught:
        open_engine(path)
    assert caught.value.code == "engine_load" and "\n" not in str(caught.value)


def test_a_package_of_another_device_is_a_usage_error(tmp_path: Path) -> None:
    path = write_package(tmp_path / "m.pt2", built_here(), card=color_card())
    with pytest.raises(UsageError, match="compiled for cpu and cannot run on cuda"):
        open_engine(path, device="cuda")


def test_export_without_a_compiler_ends_at_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    ended = cli("export", saved_run(), "--to", "aotinductor")
    assert ended.code == 1 and "no-such-compiler" in ended.err and "apt-get install g++" in ended.err
    assert not list(cli.folder.glob("*.pt2"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--precision", "bfloat16"), "only goes with --to aotinductor"),
        (("--to", "aotinductor", "--precision", "fp8"), "no precision 'fp8'"),
        (("--to", "aotinductor", "--weights", "float16"), "--precision float16"),
        (("--to", "aotinductor", "--device", "cpuu"), "did you mean 'cpu'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_options_of_packages_are_checked(cli: Cli, words: tuple[str, ...], said: str) -> None:
    ended = cli("export", saved_run(), *words)
    assert ended.code == 2 and said in ended.err


def test_a_shape_that_comes_again_is_recorded_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[int, ...]] = []

    class Replay:
        """What a recorded graph does: from its own input to its own output."""

        def __init__(self, taken: Any, output: Any) -> None:
            self.taken, self.output = taken, output

        def replay(self) -> None:
            self.output.copy_(self.taken + 1)

    def record(self: Any, images: Any) -> tuple[Any, Any, tuple[Any, ...]]:
        recorded.append(tuple(images.shape))
        taken, output = images.clone(), images + 1
        return Replay(taken, output), taken, (output,)

    monkeypatch.setattr(aotinductor._Graphs, "_record", record)
    graphs = aotinductor._Graphs(lambda images: (images + 1,))
    results = []
    for value in range(5):
        results.append(graphs(torch.full((1, 3, 8, 8), float(value)))[0])
    assert recorded == [(1, 3, 8, 8)]
    # a later replay must not change what an earlier one returned
    assert [float(result.mean()) for result in results] == [1, 2, 3, 4, 5]
    for side in range(9, 40):
        for _ in range(3):
            graphs(torch.zeros(1, 3, side, 8))
    assert len(graphs._recorded) == aotinductor._GRAPHS_KEPT
    graphs(torch.zeros(1, 3, 39, 8))
    assert len(recorded) == 32


@pytest.mark.parametrize("memory", [True, False], ids=["out of memory", "illegal access"])
def test_a_recording_that_fails_is_given_up_for_memory_and_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    calls: list[str] = []

    def record(self: Any, images: Any) -> Any:
        calls.append("record")
        raise RuntimeError("run_func_ API call failed")

    def call(images: Any) -> tuple[Any, ...]:
        calls.append("call")
        return (images + 1,)

    monkeypatch.setattr(aotinductor._Graphs, "_record", record)
    graphs = aotinductor._Graphs(call, exhausted=lambda: len(calls) if memory else 0)
    images = torch.zeros(1, 3, 8, 8)
    graphs(images), graphs(images)
    if memory:
        for _ in range(3):
            assert float(graphs(images)[0].mean()) == 1
        assert calls == ["call", "call", "record", "call", "call", "call"]
    else:
        with pytest.raises(RuntimeError):
            graphs(images)
        assert calls == ["call", "call", "record"]


class FakeDevice:
    """Stands for compiled code on a GPU: fails without a reason above a batch size, as compiled code does."""

    def __init__(self, *, most: int) -> None:
        self.most, self.batches, self.exhausted, self.lost = most, list[int](), 0, False

    def run(self, inputs: list[Any]) -> list[Any]:
        (images,) = inputs
        self.batches.append(len(images))
        if len(images) > self.most:
            self.exhausted += 0 if self.lost else 1
            raise RuntimeError("run_func_(...) API call failed at model_container_runner.cpp, line 137")
        return [images.sum(dim=(2, 3)), images * 2]

    def error(self, error: Exception, device: Any) -> Exception:
        return RuntimeError("CUDA error: an illegal memory access was encountered") if self.lost else error


@pytest.fixture
def on_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FakeDevice, Engine]:
    device = FakeDevice(most=3)
    monkeypatch.setattr(aotinductor, "_load", lambda *_, **__: device)
    monkeypatch.setattr(aotinductor, "_exhausted", lambda _: device.exhausted)
    monkeypatch.setattr(aotinductor, "_told_by_device", device.error)
    engine = open_engine(write_package(tmp_path / "m.pt2", built_here()))
    assert isinstance(engine, aotinductor.AotInductorEngine)
    monkeypatch.setattr(engine, "_limit", BatchLimit())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    return device, engine


def test_memory_that_ran_out_in_compiled_code_halves_batches_and_is_remembered(
    on_device: tuple[FakeDevice, Engine],
) -> None:
    device, engine = on_device
    images = noise(7, 3, 16, 16)
    assert np.array_equal(engine.infer(images).maps, images * 2)
    assert device.batches == [7, 3, 3, 1]
    engine.infer(images)
    assert device.batches[4:] == [3, 3, 1]
    scores, maps = engine.run_tensors(torch.from_numpy(images))  # type: ignore[attr-defined]
    assert maps.shape == (7, 3, 16, 16) and scores.shape == (7, 3)


def test_a_lost_device_ends_the_run_at_once(on_device: tuple[FakeDevice, Engine]) -> None:
    device, engine = on_device
    device.lost = True
    with pytest.raises(WsssError) as caught:
        engine.infer(noise(8, 3, 16, 16))
    assert caught.value.code == "device_lost" and device.batches == [8]
