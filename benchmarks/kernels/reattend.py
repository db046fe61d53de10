"""masked_reattention: how a case is made, run and judged."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.parity import Verdict, compare, packed_heads
from benchmarks.kernels.sizes import CLASSES, DIM, HEADS, SIZES, TYPES, name_of, shapes
from benchmarks.kernels.timing import measured
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.masked_reattention import masked_reattention, reference


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
    device: str = "cpu",
) -> list[Verdict]:
    """Verdict on the output. PyTorch computes in float32 here too, whatever the type of the inputs."""
    parts = packed_heads(batch, heads, tokens, dim, dtype, device=device)
    selected = chosen(batch, tokens, share, device=device)

    def kernel() -> list[Tensor]:
        with use_kernels("triton"):
            return [masked_reattention(*parts, selected, scale=dim**-0.5)]

    def plain(exact: bool) -> list[Tensor]:
        inputs = [part.double() for part in parts] if exact else parts
        return [reference.masked_reattention(*inputs, selected, scale=dim**-0.5)]

    case = f"reattend B{batch}-H{heads}-N{tokens}-d{dim}-{share:g}-{str(dtype).removeprefix('torch.')}"
    return compare(case, ["out"], kernel, plain)


def parity_of_all(device: str, *, small: bool) -> list[Verdict]:
    """Verdicts in every type; ``small`` for the interpreter."""
    found: list[Verdict] = []
    for dtype in TYPES:
        for batch, heads, tokens in shapes(small):
            found += parity(batch, heads, tokens - 1, DIM, dtype, device=device)
    return found


def _call(mode: str, q: Tensor, k: Tensor, v: Tensor, selected: Tensor, places: Tensor | None) -> Tensor:
    with use_kernels(mode):
        return masked_reattention(q, k, v, selected, scale=DIM**-0.5, places=places)


def timings(repeat: int, ceiling: dict[str, float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The masked attention, and its compact form with 40 % of the queries, beside PyTorch's."""
    for batch, tokens in SIZES:
        for heads in HEADS:
            count = tokens - CLASSES
            parts = packed_heads(batch, heads, count, DIM, torch.bfloat16, device="cuda")
            selected = chosen(batch, count, 0.4, device="cuda")
            places = torch.arange(0, count, 5, device="cuda", dtype=torch.int32)[: 2 * count // 5]
            places = places.expand(batch, -1)
            row: dict[str, Any] = {}
            for mode in ("triton", "reference"):
                for form, queries, at in (
                    ("", parts[0], None),
                    (", compact", parts[0][:, :, : places.shape[1]], places),
                ):
                    work = partial(_call, mode, queries, *parts[1:], selected, at)

                    row[f"{mode}{form}"] = measured(work, repeat)
            judged = parity(min(batch, 2), heads, count, DIM, torch.bfloat16, device="cuda")
            row["parity"] = [verdict.as_dict() for verdict in judged]
            yield name_of(batch, tokens, heads), row
