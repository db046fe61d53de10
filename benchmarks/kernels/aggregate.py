"""attention_aggregate: how a case is made, run and judged."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.parity import Verdict, compare, packed_heads
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.attention_aggregate import attention_aggregate, reference

OUTPUTS = ("out", "class_map", "affinity")


def accumulators(
    q: Tensor, classes: int, wanted: tuple[bool, bool], dtype: torch.dtype = torch.float32
) -> list[Tensor | None]:
    """Class map and affinity, each or None; they start at 0.5, because kernels must add to what is there."""
    batch, _, tokens, _ = q.shape
    patches = tokens - classes
    return [
        torch.full((batch, rows, patches), 0.5, dtype=dtype, device=q.device) if asked else None
        for rows, asked in zip((classes, patches), wanted, strict=True)
    ]


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
        inputs = [part.double() for part in heads_of] if exact else heads_of
        out = reference.attention_aggregate(*inputs, classes, *maps, weight, scale=dim**-0.5, upcast=exact)
        return [out, *(total for total in maps if total is not None)]

    names = [OUTPUTS[0], *(name for name, asked in zip(OUTPUTS[1:], wanted, strict=True) if asked)]
    case = f"aggregate B{batch}-H{heads}-T{tokens}-d{dim}-C{classes}-{str(dtype).removeprefix('torch.')}"
    return compare(case, names, kernel, plain)
