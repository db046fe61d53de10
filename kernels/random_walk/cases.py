"""random_walk held against PyTorch: how a case is made and judged, and what the proof asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.proof.rule import Check, Verdict, compare
from wsss_rt.kernels.random_walk import OPERATOR, random_walk, reference
from wsss_rt.kernels.random_walk.transitions import pair_offsets, transitions


def case_of(
    batch: int, classes: int, rows: int, columns: int, *, radius: int = 5, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Scores and affinity of 0..1."""
    generator = torch.Generator().manual_seed(rows * columns)
    scores = torch.rand(batch, classes, rows, columns, generator=generator)
    affinity = torch.rand(batch, len(pair_offsets(radius)), rows, columns, generator=generator)
    return scores.to(device), affinity.to(device)


def parity(
    batch: int,
    classes: int,
    rows: int,
    columns: int,
    *,
    steps: int = 3,
    beta: float = 8.0,
    radius: int = 5,
    device: str = "cpu",
) -> list[Verdict]:
    """Verdict on the scores."""
    scores, affinity = case_of(batch, classes, rows, columns, radius=radius, device=device)

    def run(mode: str) -> list[Tensor]:
        with use_kernels(mode):
            return [random_walk(scores, affinity, beta=beta, steps=steps, radius=radius)]

    def plain(exact: bool) -> list[Tensor]:
        if not exact:
            return run("reference")
        by = transitions(affinity.double(), beta=beta, radius=radius)
        return [reference.walk(scores.double().flatten(2), by, steps).view(scores.shape)]

    case = f"walk B{batch}-C{classes}-{rows}x{columns}-s{steps}-r{radius}"
    return compare(case, ["scores"], lambda: run("triton"), plain)


def _judge(device: str, dtype: torch.dtype, small: bool) -> Iterator[Verdict]:
    if small:
        yield from parity(1, 2, 6, 10, steps=2, device=device)
        return
    yield from parity(1, 2, 7, 11, steps=3, radius=3, device=device)
    # many steps in one launch, and a launch a step
    yield from parity(2, 4, 47, 63, steps=64, device=device)
    yield from parity(1, 3, 125, 125, steps=17, device=device)


def _work(device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A photograph of 500x375 px in cells of 8."""
    scores, affinity = case_of(1, 4, 47, 63, device=device)
    return lambda: random_walk(scores, affinity)


CHECKS = {OPERATOR: Check(_judge, _work)}
