"""map_to_mask: how a case is made, run, judged and timed.

A mask is no number that errs a little, so that the rule of ``parity.py`` judges the planes and the sums, and
masks are held to the share of pixels that differ from float64's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.parity import Verdict, judge
from wsss_rt import localize
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.map_to_mask import (
    NORMALISE_EPSILON,
    Taps,
    map_planes,
    map_to_mask,
    merge_grids,
    reference,
    taps_for,
)

BACKGROUND, BAND = 0.4, (0.3, 0.5)
# of the pixels: float32 decides otherwise where two scores are equal but for their last digits
DIFFERENT_PIXELS = 1e-4
# photographs of the kinds that label meets: tokens, pixels, present classes
PHOTOS = (
    ((14, 14), (224, 224), 2),
    ((23, 31), (375, 500), 3),
    ((48, 48), (768, 768), 3),
    ((96, 96), (1536, 1536), 5),
)


def maps_of(
    grids: tuple[tuple[int, int], ...], classes: int, *, flip: bool = True, device: str = "cpu", seed: int = 0
) -> list[Tensor]:
    """Token maps of an image's passes, (F, classes, h, w) float32."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1 + flip, classes, *grid, generator=generator).to(device) for grid in grids]


def parity(
    grids: tuple[tuple[int, int], ...],
    size: tuple[int, int],
    present: tuple[int, ...],
    *,
    upsample: str = "bilinear",
    normalise: str = "minmax",
    classes: int = 20,
    band: tuple[float, float] | None = BAND,
    device: str = "cpu",
) -> list[Verdict]:
    """Verdicts on planes, mask and sums."""
    tokens, shapes = merge_grids(maps_of(grids, classes, device=device), present)
    wide, rule = classes > 254, {"upsample": upsample, "normalise": normalise}

    def kernel() -> list[Tensor]:
        with use_kernels("triton"):
            planes = map_planes(tokens, shapes, size, **rule)
            mask, sums = map_to_mask(
                tokens, shapes, present, size, background=BACKGROUND, ignore_band=band, wide=wide, **rule
            )
        return [planes, mask.int(), sums[: 1 + len(present)] / mask.numel()]

    def plain(exact: bool) -> list[Tensor]:
        kind = torch.float64 if exact else torch.float32
        given = Taps(
            *(
                part.to(kind) if part.is_floating_point() else part
                for part in taps_for(shapes, size, upsample, tokens.device)
            )
        )
        planes = torch.stack(list(reference.planes(tokens.to(kind), given, normalise, NORMALISE_EPSILON)))
        mask, sums = reference.decide(
            planes, present, size, background=BACKGROUND, band=band, sure=None,
            ignore=65_535 if wide else 255, device=tokens.device,
        )  # fmt: skip
        return [planes, mask, sums[: 1 + len(present)] / mask.numel()]

    name = "x".join(map(str, size)) + "-".join(["", *("x".join(map(str, grid)) for grid in grids)])
    case = f"map_to_mask {name}-{upsample}-{normalise}-K{len(present)}"
    found, usual, exact = kernel(), plain(False), plain(True)
    planes, sums = (
        judge(case, name, found[at], usual[at], exact[at]) for name, at in (("planes", 0), ("sums", 2))
    )
    shares = [float((other[1] != exact[1]).double().mean()) for other in (found, usual)]
    return [planes, Verdict(case, "mask", *shares, 2 * shares[1] + DIFFERENT_PIXELS), sums]


def parity_of_all(device: str, *, small: bool) -> list[Verdict]:
    """Verdicts on the cases that the GPU script checks; ``small`` for the interpreter."""
    found: list[Verdict] = []
    photos = (((5, 4), (41, 33), 2),) if small else PHOTOS
    for tokens, size, count in photos:
        present = tuple(range(0, 3 * count, 3))
        for upsample, normalise in (("bilinear", "minmax"), ("aligned", "peak"), ("bicubic", "minmax")):
            found += parity((tokens,), size, present, upsample=upsample, normalise=normalise, device=device)
        found += parity((tokens, (tokens[0] - 1, tokens[1] + 1)), size, present, device=device)
    return found


def time_map_to_mask(
    tokens: tuple[int, int],
    size: tuple[int, int],
    count: int,
    measured: Callable[[Callable[[], Any], int], Any],
    repeat: int,
) -> dict[str, Any]:
    """One image: the kernels, plain PyTorch, and numpy on the host with the copy of the maps that it needs.

    Args:
        tokens: (h, w) of the maps.
        size: (H, W) of the image.
        count: of the present classes.
        measured: times a function, as ``gpu.py`` has it.
        repeat: runs.
    """
    maps, present = maps_of((tokens,), 20, device="cuda"), list(range(count))

    def on_device(mode: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            merged, shapes = merge_grids(maps, present)
            with use_kernels(mode):
                return map_to_mask(merged, shapes, present, size, background=BACKGROUND)[0]

        return run

    row = {mode: measured(on_device(mode), repeat) for mode in ("triton", "reference")}
    if isinstance(row["triton"], dict):
        # the mask is all that must be written; tokens are read once by each of two launches
        moved = size[0] * size[1] + 2 * 4 * count * tokens[0] * tokens[1]
        row["triton"]["gbs"] = round(moved / row["triton"]["ms"] / 1e6, 2)
    began = time.perf_counter()
    for _ in range(5):
        planes = localize.merge_passes([part.cpu().numpy() for part in maps], present, size=size)
        localize.decide(planes, present, background=BACKGROUND)
    row["numpy"] = {"ms": round(1e3 * (time.perf_counter() - began) / 5, 4)}
    return row


def timings(measured: Callable[[Callable[[], Any], int], Any], repeat: int) -> dict[str, Any]:
    """A row a kind of photograph, as a part of ``gpu.py``."""
    return {
        f"{size[0]}x{size[1]}-K{count}": time_map_to_mask(tokens, size, count, measured, repeat)
        for tokens, size, count in PHOTOS
    }
