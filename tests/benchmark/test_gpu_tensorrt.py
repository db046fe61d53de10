"""``benchmarks/gpu/tensorrt_engine.py``: its words, its one line without a GPU, and a whole run on fakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import tensorrt_engine as script
from tests.engines.fake_cuda import NAME, FakeCuda
from tests.engines.fake_tensorrt import VERSIONS, install
from tests.label_models import write_color_model


def test_the_command_line() -> None:
    plain = script.arguments([])
    assert plain.precisions == ("float16", "bfloat16", "float32") and plain.batches[0] == 1
    given = script.arguments(["--precisions", "float32", "--sizes", "64x48,96x96", "--batches", "1,8"])
    assert given.precisions == ("float32",)
    assert given.sizes == ((64, 48), (96, 96)) and given.batches == (1, 8)
    quick = script.arguments(["--quick"])
    assert len(quick.precisions) == len(quick.sizes) == 1 and quick.repeat <= 20


@pytest.mark.parametrize(
    "words",
    [["--sizes", "64"], ["--batches", "0"], ["--batches", "x"], ["--precisions", "int4"]],
    ids=" ".join,
)
def test_wrong_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        script.arguments(words)
    assert caught.value.code == 2 and words[0] in capsys.readouterr().err


def test_without_a_gpu_it_is_one_line(root_dir: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a driver")
    done = subprocess.run(
        [sys.executable, str(root_dir / "benchmarks" / "gpu" / "tensorrt_engine.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "TensorRT needs a GPU of NVIDIA" in done.stderr


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trt = install(monkeypatch, FakeCuda(), VERSIONS[-1])
    monkeypatch.setattr(script, "_PRODUCT_BATCH", 1)
    monkeypatch.setattr("wsss_rt.benchmark.product_model.CHAIN", 1)
    stored: dict[str, Any] = {}
    monkeypatch.setattr(script, "write_result", lambda name, content: stored.update({name: content}) or name)
    model = write_color_model(tmp_path / "color.onnx")
    words = ["--model", str(model), "--sizes", "64x64", "--batches", "1,3,64", "--repeat", "2"]
    script.main([*words, "--precisions", "float32", "--name", "trial"])
    result = json.loads(json.dumps(stored["trial"]))
    assert result["gpu"]["name"] == NAME and result["tensorrt"] == trt.__version__
    found = result["precisions"]["float32"]
    assert found["parity"]["passed"] and found["graphs_unused"] == "" and found["ceiling_tflops"] > 0
    one, three, many = found["rows"]
    assert {"p50_ms", "p90_ms", "p99_ms", "mean_ms", "images_s", "device_ms", "of_ceiling"} <= set(three)
    # the plan's largest batch is smaller: such a row is told, not made up
    assert "at most 32 images" in many["refused"]
    best = found["best"]["64x64"]
    assert best["batch"] in (1, 3) and best["latency_ms"]["p50_ms"] == one["p50_ms"]
