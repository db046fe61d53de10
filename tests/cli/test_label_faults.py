"""`wsss-rt label` when it is killed, interrupted, or cannot write."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.label_runs import manifest, run, start, tree, write_images
from tests.label_models import write_color_model

pytest.importorskip("onnx")

# each kill costs the start of a process; the full number is for a nightly run
KILLS = int(os.environ.get("WSSS_RT_KILLS", "3"))
IMAGES = 24
WORDS = ("label", "../images", "--out", "out", "--backend", "onnxruntime", "--format", "png,coco,report")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, one of them damaged, and a model."""
    folder = tmp_path_factory.mktemp("faults")
    images = write_images(folder / "images", IMAGES, height=160, width=240)
    (images / "0007.png").write_bytes((images / "0007.png").read_bytes()[:500])
    write_color_model(folder / "color.onnx")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> dict[str, object]:
    """The output tree of a run that nobody disturbed."""
    folder = place / "whole"
    folder.mkdir()
    assert run(folder, *WORDS, "--model", "../color.onnx").code == 3
    return tree(folder / "out")


def count_records(out: Path) -> int:
    try:
        return (out / "manifest.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def wait_for_records(process: subprocess.Popen[str], out: Path, least: int) -> None:
    while process.poll() is None and count_records(out) < least:
        time.sleep(0.002)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".tmp") or "lock" in path.name]


def test_killed_and_resumed_equals_uninterrupted(place: Path, uninterrupted: dict[str, object]) -> None:
    folder = place / "killed"
    folder.mkdir()
    dice = random.Random(11)
    killed = 0
    for _ in range(KILLS):
        process = start(folder, *WORDS, "--model", "../color.onnx")
        so_far = count_records(folder / "out")
        # anywhere: before the first record, between two, and while the files that collect the run are built
        wait_for_records(process, folder / "out", so_far + dice.randint(0, max(1, 2 * IMAGES // KILLS)))
        time.sleep(dice.random() * 0.05)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        for path in (folder / "out").rglob("*.png"):
            with Image.open(path) as mask:
                mask.load()
    assert killed
    ended = run(folder, *WORDS, "--model", "../color.onnx")
    assert ended.code == 3, ended.err
    assert tree(folder / "out") == uninterrupted
    assert leftovers(folder) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drains_and_tells_how_to_go_on(
    place: Path, uninterrupted: dict[str, object], number: signal.Signals, code: int
) -> None:
    folder = place / number.name
    folder.mkdir()
    process = start(folder, *WORDS, "--model", "../color.onnx")
    wait_for_records(process, folder / "out", 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "to go on: wsss-rt label ../images --out out" in err
    done = manifest(folder / "out")
    assert 3 <= len(done) < IMAGES
    assert leftovers(folder) == []
    assert run(folder, *WORDS, "--model", "../color.onnx").code == 3
    assert tree(folder / "out") == uninterrupted


@pytest.mark.parametrize("limit", [500, 3_500])
def test_a_full_disk_is_one_line_and_nothing_partial(place: Path, limit: int) -> None:
    folder = place / f"full-{limit}"
    folder.mkdir()

    def refuse_large_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ended = run(folder, *WORDS, "--model", "../color.onnx", "--quiet", preexec_fn=refuse_large_files)
    assert ended.code == 1
    assert len(ended.err.splitlines()) == 1, ended.err
    assert "cannot write" in ended.err
    assert leftovers(folder) == []
    for path in (folder / "out").rglob("*.png"):
        with Image.open(path) as mask:
            mask.load()
    assert run(folder, *WORDS, "--model", "../color.onnx").code == 3


@pytest.mark.parametrize("name", ["manifest.jsonl", "run.json"])
def test_dev_full_is_one_line(place: Path, name: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    folder = place / f"dev-full-{name}"
    (folder / "out").mkdir(parents=True)
    (folder / "out" / name).symlink_to("/dev/full")
    ended = run(folder, *WORDS, "--model", "../color.onnx", "--quiet", "--no-resume")
    # --no-resume begins with a new manifest, so only the other link is still in the way
    assert ended.code == 3
    (folder / "out" / name).unlink()
    (folder / "out" / name).symlink_to("/dev/full")
    ended = run(folder, *WORDS, "--model", "../color.onnx", "--quiet")
    assert ended.code == 1
    assert len(ended.err.splitlines()) == 1, ended.err
    assert name in ended.err
    assert leftovers(folder) == []


@pytest.mark.parametrize("kind", ["file", "read_only"])
def test_an_output_that_cannot_be_written_is_one_line(place: Path, kind: str) -> None:
    folder = place / f"unwritable-{kind}"
    folder.mkdir()
    if kind == "file":
        (folder / "out").write_bytes(b"mine")
    else:
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder.chmod(0o555)
    ended = run(folder, *WORDS, "--model", "../color.onnx")
    assert ended.code == 1
    assert len(ended.err.splitlines()) == 1, ended.err
    assert "cannot write" in ended.err
    if kind == "file":
        assert (folder / "out").read_bytes() == b"mine"
