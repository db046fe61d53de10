"""The parity part of ``benchmarks/kernels/gpu.py``, small enough for the interpreter."""

from __future__ import annotations

from benchmarks.kernels.gpu import parity_of_all


def test_every_kernel_passes_in_every_type(device: str) -> None:
    verdicts = parity_of_all(device, small=device == "cpu")
    assert [verdict for verdict in verdicts if not verdict.passed] == []
    assert {verdict.case.split()[0] for verdict in verdicts} == {"aggregate", "reattend", "propagate"}
