"""random_walk: how a case is made, run, judged and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernels.parity import Verdict, compare
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.random_walk import random_walk, reference
from wsss_rt.kernels.random_walk.transitions import pair_offsets, transitions
from wsss_rt.refine.random_walk import walk as cpu_walk
from wsss_rt.refine.walk_params import WalkParams

# images of 500x375, of 1000x1000 and of 2000x2000 px in cells of 8: the last two take a launch a step
TIMED = ((16, 4, 47, 63), (4, 4, 125, 125), (1, 21, 250, 250))


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


def parity_of_all(device: str, *, small: bool) -> list[Verdict]:
    """Verdicts for ``gpu.py``; ``small`` for the interpreter."""
    if small:
        return parity(1, 2, 6, 10, steps=2, device=device)
    found = [parity(*shape, steps=steps, device=device) for shape in TIMED for steps in (1, 64, 257)]
    return [verdict for verdicts in found for verdict in verdicts]


def timings(repeat: int, _: dict[str, float]) -> Iterator[tuple[str, Any]]:
    """The walk of a batch on the GPU, beside the CPU's of one image, and how far they are apart.

    Args:
        repeat: runs.
        _: what the card reaches, which says nothing of a walk.
    """
    from benchmarks.kernels.timing import in_both

    for batch, classes, rows, columns in TIMED:
        scores, affinity = case_of(batch, classes, rows, columns, device="cuda")
        row = in_both(partial(random_walk, scores, affinity), repeat)
        with use_kernels("triton"):
            found = random_walk(scores, affinity)[0].cpu().numpy()
        begun = time.perf_counter()
        wanted = cpu_walk(scores[0].cpu().numpy(), affinity[0].cpu().numpy(), WalkParams())
        row["cpu, one image, ms"] = round((time.perf_counter() - begun) * 1e3, 1)
        row["apart"] = float(np.abs(found - wanted).max())
        yield f"B{batch}-C{classes}-{rows}x{columns}", row
