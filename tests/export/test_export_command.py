"""``wsss-rt export`` as a user calls it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.label_runs import Cli
from tests.cli.label_runs import run as run_process

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process, which imports torch once for all tests."""
    return Cli(tmp_path, monkeypatch, capsys)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder that looks like a run at first sight."""
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_a_run_becomes_an_artifact_that_labels(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from tests.exported import exported
    from wsss_rt.model_card import read_card

    out = tmp_path / "models" / "tiny model.onnx"
    done = run_process(
        tmp_path, "export", exported().run, "--to", "onnx", "--out", out,
        "--layers-fused", "1", "--no-affinity", "--background", "0.25",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    for word in ("onnxruntime", "openvino", "PASS", "opset", "MB", f"--model '{out}'"):
        assert word in done.out
    card = read_card(out)
    assert (card.options["layers_fused"], card.options["affinity"]) == (1, False)
    assert card.recommended.background == 0.25 and "export" in card.recommended.provenance
    # the options are in the graph, and not only in the card
    assert out.read_bytes() != exported().path.read_bytes()
    assert card.weights_sha256 != read_card(exported().path).weights_sha256


@pytest.mark.slow
def test_an_official_checkpoint_becomes_an_artifact(tmp_path: Path, cli: Cli) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    import numpy as np

    from tests.exported import exported, tiny_model
    from wsss_rt.engines import open_engine
    from wsss_rt.model_card import read_card

    model = tiny_model()
    torch.save({"model": model.state_dict(), "epoch": 59}, tmp_path / "official.pth")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    done = cli(
        "export", "official.pth", "--official", "--method", "mctformer-v2", "--classes", "names.txt",
        "--backbone", "vit_test_tiny", "--img-size", "64", "--layers-fused", "2",
        "--out", "v2.onnx", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["parity"]["passed"] is True
    assert report["bytes"] == (tmp_path / "v2.onnx").stat().st_size
    assert report["next"] == "wsss-rt label ./images --model v2.onnx"
    engine = open_engine(tmp_path / "v2.onnx", backend="onnxruntime")
    assert engine.card.classes == ("ant", "bee", "cat", "dog")
    assert engine.card.input.size_policy == "native"
    assert engine.card.training["file"] == "official.pth"
    # the same weights give the same bytes, whichever way they came
    assert engine.card.weights_sha256 == read_card(exported().path).weights_sha256
    images = np.random.default_rng(0).standard_normal((1, 3, 70, 90), dtype=np.float32)
    with torch.inference_mode():
        maps = model(torch.from_numpy(images))[1].numpy()
    assert np.abs(engine.infer(images).maps - maps).max() <= 1e-5 * np.abs(maps).max()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "tensorrt"], ["is no exported model", "--out model.onnx"]),
        (["--to", "tensorrt", "--device", "cuda"], ["--device only goes with --to aotinductor"]),
        (["--to", "aotinductor", "--weights", "float16"], ["--weights only goes with --to onnx"]),
        (["--to", "onx"], ["onx", "'onnx'"]),
        (["--weights", "float6"], ["float6", "'float16'"]),
        (["--method", "mctformer-v2"], ["--method", "--official"]),
        (["--backbone", "x", "--img-size", "224"], ["--backbone, --img-size", "--official"]),
        (["--official"], ["--method", "--classes"]),
        (["--official", "--method", "mctformer-v2", "--classes", "voc"], ["folder"]),
        (["--out", "."], ["folder"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_use_is_one_line_with_a_way_out(
    arguments: list[str], words: list[str], run: Path, cli: Cli
) -> None:
    done = cli("export", run, *arguments)
    assert done.code == 2
    assert done.out == "" and done.err.count("\n") == 1
    for word in words:
        assert word in done.err
    assert sorted(path.name for path in run.parent.iterdir()) == ["run"]


def test_a_source_that_is_not_there_or_no_run(tmp_path: Path, cli: Cli) -> None:
    done = cli("export", tmp_path / "absent")
    assert done.code == 2 and "absent" in done.err
    loose = tmp_path / "some.pth"
    loose.write_bytes(b"x")
    done = cli("export", loose)
    assert done.code == 2 and "--official" in done.err


def test_without_its_packages_the_command_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else find(name, *rest)
    )
    done = cli("export", run)
    assert done.code == 1
    assert "onnxscript" in done.err and "wsss-rt[export]" in done.err


def test_an_output_that_cannot_be_written_is_known_before_the_work(
    run: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: pytest.fail("went on to the work"))
    blocked = run.parent / "file"
    blocked.write_text("")
    done = cli("export", run, "--out", blocked / "model.onnx")
    assert done.code == 1 and str(blocked) in done.err


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, cli: Cli) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(canary),))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    done = cli(
        "export", "evil.pth", "--official", "--method", "mctformer-v2", "--classes", "voc",
        "--backbone", "vit_test_tiny", "--out", "evil.onnx",
    )  # fmt: skip
    assert done.code == 1 and done.err.count("\n") == 1
    assert not canary.exists() and not (tmp_path / "evil.onnx").exists()


def test_help_shows_examples_and_loads_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['wsss-rt', 'export', '--help']\n"
        "from wsss_rt.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'onnx', 'numpy', 'onnxruntime'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "wsss-rt export runs/" in done.stdout
