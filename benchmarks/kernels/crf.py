"""dense_crf: how a case is made, run, judged and timed."""

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
from wsss_rt.kernels.dense_crf import dense_crf, prepare, reference
from wsss_rt.refine.dense_crf import dense_crf as cpu_crf
from wsss_rt.refine.params import CrfParams

# no whole number in position: there a pixel lies on the border of two simplices
SMALL = {"spatial_sxy": 2.3, "bilateral_sxy": 8.0, "bilateral_srgb": 20.0}
PHOTO = (375, 500)
# images of that size: background and one class, background and three, all of PASCAL VOC
TIMED = ((16, 2), (16, 4), (4, 21))


def pictures(
    batch: int, height: int, width: int, *, flat: bool = False, noise: float = 12.0, device: str = "cpu"
) -> Tensor:
    """Discs on plain grounds with noise, (B, H, W, 3) uint8; one colour everywhere where ``flat``."""
    random = np.random.default_rng(height * width)
    if flat:
        return torch.full((batch, height, width, 3), 93, dtype=torch.uint8, device=device)
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2
    colors = np.where(disc[..., None], (200, 90, 40), (60, 110, 150))
    noisy = colors + random.normal(0, noise, (batch, height, width, 3))
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8)).to(device)


def shares(batch: int, classes: int, height: int, width: int, *, device: str = "cpu") -> Tensor:
    """Probabilities (B, C, H, W) float32 that sum to 1."""
    generator = torch.Generator().manual_seed(classes)
    return torch.rand(batch, classes, height, width, generator=generator).softmax(dim=1).to(device)


def parity(
    batch: int,
    classes: int,
    height: int,
    width: int,
    *,
    iterations: int = 3,
    stop: float = 0.0,
    flat: bool = False,
    device: str = "cpu",
) -> list[Verdict]:
    """Verdict on the marginals. In float64 the vertices are those that float32 finds."""
    images = pictures(batch, height, width, flat=flat, device=device)
    given = shares(batch, classes, height, width, device=device)

    def run(mode: str) -> list[Tensor]:
        with use_kernels(mode):
            return [dense_crf(images, given, **SMALL, iterations=iterations, stop=stop)]

    def plain(exact: bool) -> list[Tensor]:
        if not exact:
            return run("reference")
        field = prepare(
            list(images),
            list(given),
            spatial=(SMALL["spatial_sxy"], 3.0),
            bilateral=(SMALL["bilateral_sxy"], SMALL["bilateral_srgb"], 10.0),
            density=reference.density,
            dtype=torch.float64,
        )
        found = reference.mean_field(*field, iterations, stop)
        return [found.view(classes, batch, height, width).transpose(0, 1)]

    kind = "-flat" * flat + f"-stop{stop:g}" * (stop > 0)
    case = f"crf B{batch}-C{classes}-{height}x{width}-i{iterations}{kind}"
    return compare(case, ["marginals"], lambda: run("triton"), plain)


def parity_of_all(device: str, *, small: bool) -> list[Verdict]:
    """Verdicts for ``gpu.py``; ``small`` for the interpreter."""
    if small:
        return parity(1, 3, 6, 7, iterations=2, device=device)
    found = parity(2, 21, 120, 161, device=device) + parity(3, 2, 375, 500, iterations=10, device=device)
    found += parity(1, 300, 40, 50, device=device) + parity(2, 3, 375, 500, flat=True, device=device)
    return found + parity(4, 4, 200, 300, iterations=10, stop=0.02, device=device)


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
