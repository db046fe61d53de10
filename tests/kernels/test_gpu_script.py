"""``benchmarks/kernels/gpu.py`` without a GPU: parity in the interpreter, and what fails apart."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pytest

from benchmarks.kernels import gpu, memory
from benchmarks.kernels.gpu import PARTS, Part, available, parity_of_all, run_all, run_part, summary


@pytest.mark.slow
def test_every_kernel_passes_in_every_type(device: str) -> None:
    verdicts = parity_of_all(device, small=device == "cpu")
    assert [verdict for verdict in verdicts if not verdict.passed] == []
    assert {"aggregate", "reattend", "propagate"} <= {verdict.case.split()[0] for verdict in verdicts}


def test_every_part_that_is_here_has_its_timings() -> None:
    for part in available():
        assert callable(getattr(gpu._module(part.module), part.timings, None)), part
    assert {"ceilings", "aggregate", "propagate", "reattend", "memory", "models", "engines"} <= {
        part.name for part in available()
    }
    assert len({part.name for part in PARTS}) == len(PARTS)


def test_a_part_keeps_the_rows_before_its_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def timings(repeat: int, ceiling: dict[str, float]):  # type: ignore[no-untyped-def]
        yield "first", {"ms": repeat}
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(memory, "timings", timings)
    out = tmp_path / "part.json"
    assert run_part(Part("memory", "memory"), "cpu", out, repeat=7, ceiling={}) == 1
    found = json.loads(out.read_text())
    assert found["rows"] == {"first": {"ms": 7}} and "illegal memory access" in found["error"]


def test_parts_end_in_time_and_one_that_fails_costs_its_rows_alone(capfd: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(minutes=20.0, repeat=1, name="")
    begun = time.monotonic()
    # neither has a GPU here; the second is not given the time to find that out
    parts = [
        Part("ceilings", "timing", timings="ceiling_rows", minutes=4),
        Part("memory", "memory", minutes=0.001),
    ]
    result = run_all(parts, options, device="cpu")
    assert set(result["parts"]) == {"ceilings", "memory"}
    assert "error" in result["parts"]["ceilings"]
    assert result["parts"]["memory"]["error"] == "stopped after 0 s"
    lines = summary(result)
    assert lines["memory"] == "0 rows, stopped after 0 s"
    late = run_all(parts, options, device="cpu", started=begun - 3600)
    assert late["parts"]["memory"]["error"] == "not begun: the time was up"


def test_memory_of_a_large_image_is_counted_below_its_bound() -> None:
    """1536x1536 px, 9,216 patches, 12 layers, 6 heads: counted as an allocator would, nothing computed."""
    held = memory.counted()
    assert held["streaming"] < memory.MOST
    assert held["all attention held"] > memory.EAGER
    # float32 affinity of 9,216 patches is 340 MB that streaming does not hold
    assert memory.counted(side=160)["streaming"] < held["streaming"] / 5
    print({name: f"{size / 1e9:.2f} GB" for name, size in held.items()})
