"""attention_aggregate held against PyTorch: how a case is made and judged, and what the proof asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.attention_aggregate import OPERATOR, attention_aggregate, reference
from wsss_rt.kernels.proof.rule import Check, Verdict, compare, packed_heads

OUTPUTS = ("out", "class_map", "affinity")


def accumulators(
    q: Tensor, classes: int, wanted: tuple[bool, bool], dtype: torch.dtype = torch.float32
) -> tuple[Tensor | None, Tensor | None]:
    """Class map and affinity, each or None; they start at 0.5, because kernels must add to what is there."""
    batch, _, tokens, _ = q.shape
    patches = tokens - classes
    class_map, affinity = (
        torch.full((batch, rows, patches), 0.5, dtype=dtype, device=q.device) if asked else None
        for rows, asked in zip((classes, patches), wanted, strict=True)
    )
    return class_map, affinity


def parity(
    batch: int,
    heads: int,
    tokens: int,
    dim: int,
    classes: int,
    dtype: torch.dtype,
    *,
    wanted: tuple[bool, bool] = (True, True),
    device: str = "cpu",
    weight: float = 0.75,
    spread: float = 1.0,
) -> list[Verdict]:
    """Verdicts on the output and on the maps that are wanted (class map, affinity)."""
    heads_of = packed_heads(batch, heads, tokens, dim, dtype, device=device, spread=spread)

    def kernel() -> list[Tensor]:
        maps = accumulators(heads_of[0], classes, wanted)
        with use_kernels("triton"):
            out = attention_aggregate(*heads_of, classes, *maps, weight)
        return [out, *(total for total in maps if total is not None)]

    def plain(exact: bool) -> list[Tensor]:
        kind = torch.float64 if exact else torch.float32
        maps = accumulators(heads_of[0], classes, wanted, kind)
        q, k, v = (part.double() if exact else part for part in heads_of)
        out = reference.attention_aggregate(q, k, v, classes, *maps, weight, scale=dim**-0.5, upcast=exact)
        return [out, *(total for total in maps if total is not None)]

    names = [OUTPUTS[0], *(name for name, asked in zip(OUTPUTS[1:], wanted, strict=True) if asked)]
    case = f"aggregate B{batch}-H{heads}-T{tokens}-d{dim}-C{classes}-{str(dtype).removeprefix('torch.')}"
    return compare(case, names, kernel, plain)


def _judge(device: str, dtype: torch.dtype, small: bool) -> Iterator[Verdict]:
    if small:
        yield from parity(1, 2, 37, 64, 20, dtype, device=device)
        return
    # batch, heads, tokens, head dim, class tokens
    for shape in ((1, 1, 17, 48, 0), (1, 2, 151, 32, 7), (1, 2, 83, 128, 20), (1, 2, 331, 64, 200)):
        yield from parity(*shape, dtype, device=device)
    yield from parity(2, 6, 733, 64, 20, dtype, device=device)
    for wanted in ((True, False), (False, True), (False, False)):
        yield from parity(1, 6, 197, 64, 1, dtype, wanted=wanted, device=device)
    # logits of about 200
    yield from parity(1, 2, 70, 64, 5, dtype, device=device, spread=8.0)


def _work(device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A layer of DeiT-S with 20 class tokens on photographs of 500x375 px, with both maps."""
    parts = packed_heads(8, 6, 733, 64, dtype, device=device)
    maps = accumulators(parts[0], 20, (True, True))
    return lambda: attention_aggregate(*parts, 20, *maps)


CHECKS = {OPERATOR: Check(_judge, _work)}
