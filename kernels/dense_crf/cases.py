"""dense_crf held against PyTorch: how a case is made and judged, and what the proof asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.dense_crf import OPERATOR, dense_crf, prepare, reference
from wsss_rt.kernels.proof.rule import Check, Verdict, compare

# no whole number in position: there a pixel lies on the border of two simplices
SMALL = {"spatial_sxy": 2.3, "bilateral_sxy": 8.0, "bilateral_srgb": 20.0}


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


def _judge(device: str, dtype: torch.dtype, small: bool) -> Iterator[Verdict]:
    if small:
        yield from parity(1, 3, 6, 7, iterations=2, device=device)
        return
    # every step multiplies what rounding did in the one before: three judge the kernels, ten the field
    yield from parity(1, 3, 97, 131, device=device)
    yield from parity(2, 21, 120, 161, device=device)
    yield from parity(1, 300, 40, 50, device=device)
    yield from parity(2, 3, 75, 100, flat=True, device=device)
    # half of the labels never change after the first step, and so it ends with the next
    yield from parity(2, 4, 100, 150, iterations=10, stop=0.5, device=device)


def _work(device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A photograph with background and two classes, and the default kernels."""
    images, given = pictures(1, 375, 500, noise=4.0, device=device), shares(1, 3, 375, 500, device=device)
    return lambda: dense_crf(images, given)


CHECKS = {OPERATOR: Check(_judge, _work)}
