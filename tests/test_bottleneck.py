"""Which stage holds up a run."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.label_models import ColorEngine, write_color_model
from tests.test_labeler import write_folder
from wsss_rt.bottleneck import find_bottleneck
from wsss_rt.engines.base import EngineOutput
from wsss_rt.label_plan import Job
from wsss_rt.label_run import label_folder
from wsss_rt.run_record import read_run

THREADS = {"engine": 1, "workers": 4, "writers": 4}


def test_what_many_threads_share_weighs_less() -> None:
    found = find_bottleneck(
        {"decode": 3000, "encode": 500, "infer": 950, "write": 80}, seconds=1, threads=THREADS
    )
    assert found is not None and (found.stage, found.resource) == ("infer", "engine")
    assert found.busy == pytest.approx({"engine": 0.95, "workers": 0.875, "writers": 0.02})
    assert str(found) == "infer (engine 95 % busy)"
    slower = find_bottleneck({"decode": 2200, "encode": 1700, "infer": 950}, seconds=1, threads=THREADS)
    assert slower is not None and str(slower) == "decode (workers 98 % busy)"


def test_a_run_that_did_nothing_waited_for_nothing() -> None:
    assert find_bottleneck({}, seconds=0.0, threads=THREADS) is None
    assert find_bottleneck({"total": 5.0}, seconds=1.0, threads=THREADS) is None


def test_run_json_names_a_slow_engine(tmp_path: Path) -> None:
    class Slow(ColorEngine):
        def infer(self, images: NDArray[np.float32]) -> EngineOutput:
            # several times what all else of so small an image takes, also on a busy machine
            time.sleep(0.2)
            return super().infer(images)

    write_folder(tmp_path / "images", 4)
    job = Job(
        inputs=[str(tmp_path / "images")], out=tmp_path / "out", model=write_color_model(tmp_path / "m.onnx"),
        formats=("png",),
    )  # fmt: skip
    for _ in range(2):
        label_folder(job, engine=Slow())
    run = read_run(tmp_path / "out")
    # the second run had nothing left to do
    assert run is not None and run["session"]["bottleneck"] is None
    out = tmp_path / "again"
    label_folder(Job(**{**vars(job), "out": out}), engine=Slow())
    run = read_run(out)
    assert run is not None
    found = run["session"]["bottleneck"]
    assert (found["stage"], found["resource"]) == ("infer", "engine")
    assert 0 < found["busy"]["workers"] < found["busy"]["engine"] <= 1.01
