"""Token refinement's kernels held against PyTorch: how a case is made and judged, and what the proof asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.masked_reattention import (
    REATTEND,
    SELECT,
    SPREAD,
    masked_reattention,
    reference,
    select_tokens,
    spread,
    spread_mass,
)
from wsss_rt.kernels.masked_reattention.constants import EPSILON
from wsss_rt.kernels.proof.rule import Check, Verdict, compare, judge, packed_heads


def chosen(batch: int, tokens: int, share: float, *, device: str = "cpu") -> Tensor:
    """About this share of the tokens, (B, N) bool."""
    generator = torch.Generator().manual_seed(tokens)
    return (torch.rand(batch, tokens, generator=generator) < share).to(device)


def parity(
    batch: int,
    heads: int,
    tokens: int,
    dim: int,
    dtype: torch.dtype,
    *,
    share: float = 0.4,
    asking: int | None = None,
    device: str = "cpu",
) -> list[Verdict]:
    """Verdict on the output, or on its compact form for ``asking`` queries. PyTorch computes in float32 here
    too, whatever the type of the inputs."""
    q, k, v = packed_heads(batch, heads, tokens, dim, dtype, device=device)
    selected = chosen(batch, tokens, share, device=device)
    places = None
    if asking is not None:
        # in no order
        order = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(asking)).argsort(dim=1)
        places = order[:, :asking].to(device=device, dtype=torch.int32)
        q = torch.stack([q[image][:, places[image].long()] for image in range(batch)])

    def kernel() -> list[Tensor]:
        with use_kernels("triton"):
            return [masked_reattention(q, k, v, selected, scale=dim**-0.5, places=places)]

    def plain(exact: bool) -> list[Tensor]:
        queries, keys, values = (part.double() if exact else part for part in (q, k, v))
        return [reference.masked_reattention(queries, keys, values, selected, places, scale=dim**-0.5)]

    kind = str(dtype).removeprefix("torch.")
    case = f"reattend B{batch}-H{heads}-N{tokens}-d{dim}-{share:g}-{asking or 'all'}-{kind}"
    return compare(case, ["out"], kernel, plain)


def masses(batch: int, tokens: int, *, device: str = "cpu") -> Tensor:
    """Masses (B, N) float32 in units of 2^-16: every sum of them is exact, in whatever order."""
    generator = torch.Generator().manual_seed(tokens)
    return (torch.randint(1, 64, (batch, tokens), generator=generator) / 65536).to(device)


def select_parity(batch: int, tokens: int, *, device: str = "cpu") -> list[Verdict]:
    """Verdicts on the selection at several thresholds: exact sums leave no tie to rounding."""
    mass = masses(batch, tokens, device=device)
    found = []
    for share in (0.3, 0.65, 2.0):
        # between two sums
        threshold = (int(float(mass.sum(dim=-1).max()) * share * 65536) + 0.5) / 65536
        by_kernel, plain = (_selected(mode, mass, threshold) for mode in ("triton", "reference"))
        found.append(judge(f"select B{batch}-N{tokens}-{share:g}", "selected", by_kernel, plain, plain))
    return found


def _selected(mode: str, mass: Tensor, threshold: float) -> Tensor:
    with use_kernels(mode):
        return select_tokens(mass, threshold).float()


def spread_parity(batch: int, tokens: int, *, device: str = "cpu", offset: float = 0.0) -> list[Verdict]:
    """Verdicts on priorities and refined mass; none is selected in the first image, all in the last."""
    generator = torch.Generator().manual_seed(tokens)
    mass = torch.rand(batch, tokens, generator=generator).to(device)
    scores = (10 * torch.randn(batch, tokens, generator=generator) + offset).to(device)
    selected = chosen(batch, tokens, 0.3, device=device)
    if batch > 1:
        selected[0], selected[-1] = False, True

    def kernel() -> list[Tensor]:
        with use_kernels("triton"):
            return list(spread_mass(mass, selected, scores))

    def plain(exact: bool) -> list[Tensor]:
        if not exact:
            return list(spread.spread_mass(mass, selected, scores, EPSILON))
        return _spread_exactly(mass.double(), selected, scores.double())

    return compare(f"spread B{batch}-N{tokens}-{offset:g}", ["priorities", "mass"], kernel, plain)


def _spread_exactly(mass: Tensor, selected: Tensor, scores: Tensor) -> list[Tensor]:
    """The formula itself, without what keeps float32 from overflowing."""
    weights = torch.where(selected, scores, -torch.inf).exp()
    priorities = weights / (weights.sum(dim=-1, keepdim=True) + EPSILON)
    total = torch.where(selected, mass, 0.0).sum(dim=-1, keepdim=True)
    return [priorities, torch.where(selected, priorities * total, mass)]


def _judge(device: str, dtype: torch.dtype, small: bool) -> Iterator[Verdict]:
    if small:
        yield from parity(1, 2, 36, 64, dtype, device=device)
        yield from parity(2, 2, 36, 64, dtype, asking=11, device=device)
        return
    for shape in ((1, 1, 1, 32), (1, 3, 49, 32), (1, 2, 67, 128), (2, 6, 713, 64)):
        yield from parity(*shape, dtype, device=device)
    yield from parity(1, 2, 81, 64, dtype, share=0.0, device=device)
    yield from parity(2, 6, 713, 64, dtype, asking=285, device=device)


def _judge_select(device: str, dtype: torch.dtype, small: bool) -> Iterator[Verdict]:
    for batch, tokens in ((1, 1), (2, 37)) if small else ((1, 1), (3, 197), (2, 713), (1, 2304)):
        yield from select_parity(batch, tokens, device=device)


def _judge_spread(device: str, dtype: torch.dtype, small: bool) -> Iterator[Verdict]:
    for batch, tokens in ((1, 1), (3, 37)) if small else ((1, 1), (3, 197), (3, 1100), (2, 2304)):
        yield from spread_parity(batch, tokens, device=device)
    yield from spread_parity(3, 37, device=device, offset=-300.0)


def _work(device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The patches of photographs of 500x375 px in DeiT-S, 40 % of them selected."""
    parts = packed_heads(8, 6, 713, 64, dtype, device=device)
    selected = chosen(8, 713, 0.4, device=device)
    return lambda: masked_reattention(*parts, selected, scale=0.125)


def _work_select(device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    mass = masses(8, 713, device=device)
    threshold = 0.6 * float(mass.sum(dim=-1).max())
    return lambda: select_tokens(mass, threshold)


def _work_spread(device: str, dtype: torch.dtype) -> Callable[[], tuple[Tensor, Tensor]]:
    mass, selected = masses(8, 713, device=device), chosen(8, 713, 0.4, device=device)
    return lambda: spread_mass(mass, selected, mass)


CHECKS = {
    SELECT: Check(_judge_select, _work_select),
    REATTEND: Check(_judge, _work),
    SPREAD: Check(_judge_spread, _work_spread),
}
