"""Memory of `wsss-rt label` does not grow with the number of images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.label_runs import run, write_images
from tests.label_models import write_color_model

pytest.importorskip("onnx")

# the full measure is 300 and 3000
FEW = int(os.environ.get("WSSS_RT_MEMORY_IMAGES", "40"))


def peak_bytes(folder: Path, count: int) -> int:
    write_images(folder / f"images-{count}", count, height=240, width=320)
    out = f"out-{count}"
    words = ("label", f"images-{count}", "--out", out, "--model", "color.onnx", "--quiet")
    # patience for a machine that labels two images a second
    ended = run(folder, *words, timeout=max(600.0, count / 2))
    assert ended.code == 0, ended.err
    return int(json.loads((folder / out / "run.json").read_text())["session"]["peak_memory_bytes"])


@pytest.mark.slow
def test_ten_times_the_images_in_the_same_memory(tmp_path: Path) -> None:
    write_color_model(tmp_path / "color.onnx")
    few, many = peak_bytes(tmp_path, FEW), peak_bytes(tmp_path, 10 * FEW)
    assert many <= 1.1 * few, f"{few / 1e6:.0f} MB, and {many / 1e6:.0f} MB for ten times as many"
