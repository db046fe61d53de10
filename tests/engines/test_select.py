"""Which engine runs: what was asked, what is installed, what a trial found, and what is remembered of it."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nasty import DAMAGED_JSON
from wsss_rt.engines import open_engine, select
from wsss_rt.errors import UsageError, WsssError

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

BOTH = {"onnxruntime", "openvino"}


def cached_files(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As on a machine where these packages are not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in names else find(name, *rest)
    )


def test_auto_measures_both_and_takes_the_faster(color_model: Path) -> None:
    engine = open_engine(color_model, sample_shape=(2, 3, 64, 48))
    choice = engine.choice
    assert choice["requested"] == "auto" and choice["cached"] is False
    assert set(choice["candidates"]) == BOTH
    assert engine.backend == choice["picked"] == min(BOTH, key=lambda name: choice["candidates"][name])
    assert "2x3x64x48" in choice["reason"]
    json.dumps(choice)


def test_a_trial_is_on_what_labelling_sends_an_image_and_its_mirror_image(color_model: Path) -> None:
    assert "2x3x64x48" in open_engine(color_model, sample_shape=(64, 48)).choice["reason"]
    assert "on 2x3x" in open_engine(color_model, threads=1).choice["reason"]


def test_the_outcome_is_remembered_for_this_user_alone(color_model: Path, cache_home: Path) -> None:
    first = open_engine(color_model)
    (file,) = cached_files(cache_home)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.parent.parent.stat().st_mode) == 0o700
    again = open_engine(color_model)
    assert again.choice["cached"] is True
    assert again.backend == first.backend
    assert again.choice["candidates"] == first.choice["candidates"]


def test_what_is_remembered_decides_also_where_a_trial_would_not_pay(
    color_model: Path, cache_home: Path
) -> None:
    assert open_engine(color_model, trial=False).choice["candidates"] == dict.fromkeys(BOTH, "not measured")
    assert not cached_files(cache_home)
    open_engine(color_model)
    (file,) = cached_files(cache_home)
    for faster in BOTH:
        stored = json.loads(file.read_text())
        stored["candidates"] = {name: 1.0 if name == faster else 2.0 for name in BOTH}
        file.write_text(json.dumps(stored))
        assert open_engine(color_model, trial=False).backend == faster


def test_another_size_thread_count_or_model_is_measured_anew(color_model: Path, tmp_path: Path) -> None:
    from tests.label_models import write_color_model

    open_engine(color_model, threads=1, sample_shape=(64, 64))
    assert open_engine(color_model, threads=1, sample_shape=(64, 70)).choice["cached"] is True
    assert open_engine(color_model, threads=1, sample_shape=(256, 256)).choice["cached"] is False
    assert open_engine(color_model, threads=2, sample_shape=(64, 64)).choice["cached"] is False
    # the card is no part of the graph: the same computation is not measured twice
    other = write_color_model(tmp_path / "other.onnx", method="renamed")
    assert open_engine(other, threads=1, sample_shape=(64, 64)).choice["cached"] is True


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGED_JSON,
        lambda text: json.dumps(json.loads(text) | {"candidates": {"onnxruntime": "fast"}}),
        lambda text: json.dumps(json.loads(text) | {"candidates": {}}),
        lambda text: json.dumps(json.loads(text) | {"candidates": {"no-such-engine": 0.1}}),
        lambda text: json.dumps(json.loads(text) | {"key": {"model": "another"}}),
        lambda text: text.replace("1", "NaN"),
    ],
    ids=["cut", "empty", "list", "binary", "words", "no times", "unknown engine", "other key", "nan"],
)
def test_a_damaged_memory_means_a_new_trial(color_model: Path, cache_home: Path, damage: Any) -> None:
    open_engine(color_model)
    (file,) = cached_files(cache_home)
    file.write_text(damage(file.read_text()), encoding="latin-1")
    engine = open_engine(color_model)
    assert engine.choice["cached"] is False
    assert open_engine(color_model).choice["cached"] is True


def test_a_cache_folder_that_cannot_be_written_is_no_error(
    color_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert open_engine(color_model).choice["cached"] is False
    assert open_engine(color_model).choice["cached"] is False
    assert blocked.read_text() == "in the way"


def test_without_cache_nothing_is_written_or_read(color_model: Path, cache_home: Path) -> None:
    open_engine(color_model, cache=False)
    assert not cached_files(cache_home)
    open_engine(color_model)
    assert open_engine(color_model, cache=False).choice["cached"] is False


@pytest.mark.parametrize("name", sorted(BOTH))
def test_a_backend_that_was_asked_for_runs_without_a_trial(
    color_model: Path, cache_home: Path, name: str
) -> None:
    engine = open_engine(color_model, backend=name)
    assert engine.backend == engine.choice["picked"] == engine.choice["requested"] == name
    assert "asked for" in engine.choice["reason"]
    assert not cached_files(cache_home)


@pytest.mark.parametrize("name", sorted(BOTH))
def test_auto_goes_on_with_what_is_installed_and_says_what_is_not(
    color_model: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hide(monkeypatch, name)
    (other,) = BOTH - {name}
    assert open_engine(color_model, trial=False).backend == other
    engine = open_engine(color_model)
    assert engine.backend == other
    assert "not installed" in engine.choice["candidates"][name]
    assert engine.infer(np.zeros((1, 3, 16, 16), np.float32)).maps.shape == (1, 3, 2, 2)
    # with one of them missing nothing was compared, and nothing is worth remembering
    assert not cached_files(cache_home)


@pytest.mark.parametrize("name", sorted(BOTH))
def test_asking_for_what_is_not_installed_says_what_to_install(
    color_model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hide(monkeypatch, name)
    with pytest.raises(UsageError) as caught:
        open_engine(color_model, backend=name)
    assert f"pip install {name}" in str(caught.value)


def test_without_any_backend_every_reason_is_listed(
    color_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, *BOTH)
    for trial in (True, False):
        with pytest.raises(WsssError) as caught:
            open_engine(color_model, trial=trial)
        assert caught.value.code == "no_backend"
        assert all(name in str(caught.value) for name in BOTH)


def test_a_package_that_cannot_be_imported_is_a_reason_and_not_a_crash(
    color_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "site" / "openvino"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(
        'raise ImportError("libopenvino.so.7: cannot open shared object file")'
    )
    program = (
        "import json, sys; from wsss_rt.engines import open_engine; "
        "print(json.dumps(open_engine(sys.argv[1]).choice))"
    )
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(color_model)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    choice = json.loads(done.stdout)
    assert choice["picked"] == "onnxruntime"
    assert "libopenvino.so.7" in choice["candidates"]["openvino"]


def test_a_backend_that_fails_in_the_trial_is_not_picked(
    color_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsss_rt.engines.onnxruntime import OnnxRuntimeEngine

    def fail(self: OnnxRuntimeEngine, image: Any) -> Any:
        raise RuntimeError("no kernel for this processor")

    monkeypatch.setattr(OnnxRuntimeEngine, "_run_one", fail)
    engine = open_engine(color_model)
    assert engine.backend == "openvino"
    assert "no kernel for this processor" in engine.choice["candidates"]["onnxruntime"]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"backend": "openvnio"}, "openvino"),
        ({"backend": "vulkan"}, "choose one of"),
        ({"backend": "trt"}, "'tensorrt'"),
        ({"backend": "tensorrt", "device": "cpu"}, "does not run in tensorrt on cpu"),
        ({"backend": "aotinductor"}, "--to aotinductor"),
        ({"precision": "fp16"}, "float16"),
        ({"precision": "float16", "device": "cpu"}, "tensorrt (cuda"),
        ({"precision": "int8"}, "quantise it first"),
        ({"device": "gpu"}, "'cuda'"),
        ({"device": "npu0"}, "choose one of"),
        ({"backend": "ort"}, "'onnxruntime'"),
        ({"precision": "bf16"}, "bfloat16"),
        ({"precision": "bfloat16", "backend": "onnxruntime"}, "openvino"),
        ({"precision": "bfloat16", "device": "cuda"}, "cpu"),
        ({"backend": "openvino", "device": "cuda"}, "onnxruntime"),
        ({"threads": 0}, "at least 1"),
        ({"threads": 20_000}, "processors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_what_cannot_be_had_is_a_usage_error_with_a_hint(
    color_model: Path, options: dict[str, Any], hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        open_engine(color_model, **options)
    assert hint in str(caught.value)


def test_cuda_without_its_provider_points_to_doctor(color_model: Path) -> None:
    from wsss_rt.engines.onnxruntime import cuda_offered

    if cuda_offered():
        pytest.skip("this machine has the CUDA provider")
    with pytest.raises(UsageError) as caught:
        open_engine(color_model, device="cuda")
    assert "wsss-rt doctor" in str(caught.value)
    assert open_engine(color_model, device="auto").device == "cpu"


def test_a_damaged_model_is_found_before_any_library_loads_it(
    color_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(color_model.read_bytes())
    data[40] ^= 1
    color_model.write_bytes(data)
    monkeypatch.setattr(select, "_open", lambda *_: pytest.fail("a library saw damaged bytes"))
    with pytest.raises(WsssError) as caught:
        open_engine(color_model)
    assert caught.value.code == "model_damaged"


def test_importing_the_package_loads_no_library() -> None:
    program = (
        "import sys, wsss_rt.engines; "
        "print(sorted({'numpy', 'onnxruntime', 'openvino', 'torch'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
