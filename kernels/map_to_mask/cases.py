"""From maps to masks, held against PyTorch: how a case is made and judged, and what the proof asks.

A mask is no number that errs a little, so that the rule judges the planes and the sums, and masks are held to
the share of pixels that differ from float64's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.map_to_mask import (
    DECIDE,
    NORMALISE_EPSILON,
    OPERATOR,
    PLANES,
    Taps,
    map_planes,
    map_to_mask,
    merge_grids,
    planes_to_mask,
    reference,
    taps_for,
)
from wsss_rt.kernels.proof.rule import Check, Verdict, judge

BACKGROUND, BAND = 0.4, (0.3, 0.5)
# of the pixels: float32 decides otherwise where two scores are equal but for their last digits
DIFFERENT_PIXELS = 1e-4


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
    operators: Sequence[str] = (PLANES, OPERATOR),
) -> list[Verdict]:
    """Verdicts on the planes, the mask and the sums of the operators that are asked for."""
    tokens, shapes = merge_grids(maps_of(grids, classes, device=device), present)
    wide, rule = classes > 254, {"upsample": upsample, "normalise": normalise}

    def exactly(kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        given = taps_for(shapes, size, upsample, tokens.device)
        given = Taps(*(part.to(kind) if part.is_floating_point() else part for part in given))
        planes = torch.stack(list(reference.planes(tokens.to(kind), given, normalise, NORMALISE_EPSILON)))
        return planes, *reference.decide(
            planes, present, size, background=BACKGROUND, band=band, sure=None,
            ignore=65_535 if wide else 255, device=tokens.device,
        )  # fmt: skip

    name = "x".join(map(str, size)) + "-".join(["", *("x".join(map(str, grid)) for grid in grids)])
    case = f"map_to_mask {name}-{upsample}-{normalise}-K{len(present)}"
    usual, exact = exactly(torch.float32), exactly(torch.float64)
    found: list[Verdict] = []
    with use_kernels("triton"):
        if PLANES in operators:
            found.append(judge(case, "planes", map_planes(tokens, shapes, size, **rule), usual[0], exact[0]))
        if OPERATOR in operators:
            decided = map_to_mask(
                tokens, shapes, present, size, background=BACKGROUND, ignore_band=band, wide=wide, **rule
            )
            found += _decisions(case, decided, usual[1:], exact[1:], len(present))
    return found


def decide_parity(
    classes: int, size: tuple[int, int], *, bare: bool = False, wide: bool = False, device: str = "cpu"
) -> list[Verdict]:
    """Verdicts on the mask and the sums of random planes; beside a plane of background and a sure one unless
    ``bare``."""
    generator = torch.Generator().manual_seed(classes)
    planes = torch.rand(classes, *size, generator=generator).to(device)
    background: Tensor | float = BACKGROUND
    sure = None
    if not bare:
        background = torch.rand(*size, generator=generator).to(device)
        sure = (torch.rand(*size, generator=generator) < 0.3).to(device)
    # in masks of 16 bits, and in those of 8
    apart = 300 if wide else 2
    names = [apart * place for place in range(classes)]

    def plain(kind: torch.dtype) -> tuple[Tensor, Tensor]:
        behind = background.to(kind) if isinstance(background, Tensor) else background
        return reference.decide(
            planes.to(kind), names, size, background=behind, band=BAND, sure=sure,
            ignore=65_535 if wide else 255, device=planes.device,
        )  # fmt: skip

    with use_kernels("triton"):
        decided = planes_to_mask(
            planes, names, background=background, ignore_band=BAND, sure_background=sure, wide=wide
        )
    case = f"planes_to_mask {size[0]}x{size[1]}-K{classes}"
    return _decisions(case, decided, plain(torch.float32), plain(torch.float64), classes)


def _decisions(
    case: str,
    found: tuple[Tensor, Tensor],
    usual: Sequence[Tensor],
    exact: Sequence[Tensor],
    classes: int,
) -> list[Verdict]:
    """Verdicts on a mask and its sums; counts of pixels follow from the mask."""
    masks = [part[0].int() for part in (found, usual, exact)]
    other, usually = (float((mask != masks[2]).double().mean()) for mask in masks[:2])
    sums = [part[1][: 1 + classes] / masks[0].numel() for part in (found, usual, exact)]
    return [
        Verdict(case, "mask", other, usually, 2 * usually + DIFFERENT_PIXELS),
        judge(case, "sums", *sums),
    ]


def _judge_maps(operator: str) -> Callable[[str, torch.dtype, bool], Iterator[Verdict]]:
    def check(device: str, dtype: torch.dtype, small: bool) -> Iterator[Verdict]:
        sizes = (((5, 4), (41, 33)),) if small else (((5, 4), (41, 33)), ((23, 31), (375, 500)))
        for grid, size in sizes:
            several = (grid, (grid[0] - 1, grid[1] + 1))
            rules = (("bilinear", "minmax"), ("aligned", "peak"), ("bicubic", "minmax"))
            for upsample, normalise in rules:
                yield from parity(
                    (grid,), size, (0, 3, 6), upsample=upsample, normalise=normalise, device=device,
                    operators=(operator,),
                )  # fmt: skip
            yield from parity(several, size, (2, 19), device=device, operators=(operator,))
        if not small:
            # wide masks, and a single class
            yield from parity(
                ((14, 14),), (97, 33), (299,), classes=300, device=device, operators=(operator,)
            )

    return check


def _judge_decisions(device: str, dtype: torch.dtype, small: bool) -> Iterator[Verdict]:
    for classes, size in ((3, (41, 33)),) if small else ((1, (97, 33)), (3, (375, 500)), (21, (120, 161))):
        yield from decide_parity(classes, size, device=device)
        yield from decide_parity(classes, size, bare=True, wide=classes > 1, device=device)


def _photograph(device: str) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    return merge_grids(maps_of(((23, 31),), 20, device=device), (0, 3, 6))


def _work(device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A photograph of 500x375 px with three classes."""
    tokens, grids = _photograph(device)
    return lambda: map_to_mask(tokens, grids, (0, 3, 6), (375, 500), background=BACKGROUND)[0]


def _work_planes(device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    tokens, grids = _photograph(device)
    return lambda: map_planes(tokens, grids, (375, 500))


def _work_decisions(device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    planes = torch.rand(3, 375, 500, generator=torch.Generator().manual_seed(0)).to(device)
    return lambda: planes_to_mask(planes, (0, 3, 6), background=BACKGROUND)[0]


CHECKS = {
    OPERATOR: Check(_judge_maps(OPERATOR), _work),
    PLANES: Check(_judge_maps(PLANES), _work_planes),
    DECIDE: Check(_judge_decisions, _work_decisions),
}
