"""random_walk on a GPU: what judges it there, and its times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.proof.rule import Verdict
from wsss_rt.kernels.random_walk import random_walk
from wsss_rt.kernels.random_walk.cases import case_of, parity
from wsss_rt.refine.random_walk import walk as cpu_walk
from wsss_rt.refine.walk_params import WalkParams

# images of 500x375, of 1000x1000 and of 2000x2000 px in cells of 8: the last two take a launch a step
TIMED = ((16, 4, 47, 63), (4, 4, 125, 125), (1, 21, 250, 250))


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
