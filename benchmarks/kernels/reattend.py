"""masked_reattention on a GPU: what judges it there, and its times."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.sizes import CLASSES, DIM, HEADS, SIZES, TYPES, name_of, shapes
from benchmarks.kernels.timing import measured
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.masked_reattention import masked_reattention
from wsss_rt.kernels.masked_reattention.cases import chosen, parity
from wsss_rt.kernels.proof.rule import Verdict, packed_heads


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
