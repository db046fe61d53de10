"""dense_crf on a GPU: what judges it there, and its times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.dense_crf import dense_crf
from wsss_rt.kernels.dense_crf.cases import parity, pictures, shares
from wsss_rt.kernels.proof.rule import Verdict
from wsss_rt.refine.dense_crf import dense_crf as cpu_crf
from wsss_rt.refine.params import CrfParams

PHOTO = (375, 500)
# images of that size: background and one class, background and three, all of PASCAL VOC
TIMED = ((16, 2), (16, 4), (4, 21))


def parity_of_all(device: str, *, small: bool) -> list[Verdict]:
    """Verdicts for ``gpu.py``; ``small`` for the interpreter."""
    if small:
        return parity(1, 3, 6, 7, iterations=2, device=device)
    found = parity(2, 21, 120, 161, device=device) + parity(3, 2, 375, 500, device=device)
    found += parity(1, 300, 40, 50, device=device) + parity(2, 3, 375, 500, flat=True, device=device)
    return found + parity(4, 4, 200, 300, iterations=10, stop=0.5, device=device)


def timings(repeat: int, _: dict[str, float]) -> Iterator[tuple[str, Any]]:
    """The CRF of a batch on the GPU, beside the CPU's in one thread, and how far they are apart.

    Args:
        repeat: runs.
        _: what the card reaches, which says nothing of a CRF.
    """
    from benchmarks.kernels.timing import in_both

    height, width = PHOTO
    for batch, classes in TIMED:
        images = pictures(batch, height, width, noise=4.0, device="cuda")
        given = shares(batch, classes, height, width, device="cuda")
        row = in_both(partial(dense_crf, images, given), repeat)
        with use_kernels("triton"):
            marginals = dense_crf(images, given)[0].cpu().numpy()
        image, planes = images[0].cpu().numpy(), given[0].cpu().numpy()
        # the first call compiles
        for _call in range(2):
            begun = time.perf_counter()
            wanted = cpu_crf(image, planes, CrfParams())
            row["cpu, one image, ms"] = round((time.perf_counter() - begun) * 1e3, 1)
        row["apart"] = float(np.abs(marginals - wanted).max())
        row["labels equal"] = float((marginals.argmax(axis=0) == wanted.argmax(axis=0)).mean())
        yield f"B{batch}-C{classes}-{height}x{width}", row
