"""affinity_propagate on a GPU: what judges it there, and its times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.sizes import CLASSES, DIM, HEADS, LARGE, LAYERS, SIZES, TYPES, name_of, shapes
from benchmarks.kernels.timing import measured, with_rates
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.affinity_propagate import Problem, affinity_propagate, choose_form
from wsss_rt.kernels.affinity_propagate.cases import layers_of, maps_for, parity
from wsss_rt.kernels.attention_aggregate import attention_aggregate
from wsss_rt.kernels.proof.rule import Verdict


def parity_of_all(device: str, *, small: bool) -> list[Verdict]:
    """Verdicts in every type; ``small`` for the interpreter."""
    found: list[Verdict] = []
    for dtype in TYPES:
        for shape in shapes(small):
            found += parity(1 if small else 3, (*shape, DIM), CLASSES, CLASSES, dtype, device=device)
    return found


def timings(repeat: int, ceiling: dict[str, float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Both forms over all layers, beside what the counts choose; the large image last."""
    for batch, tokens in (*SIZES, (1, LARGE)):
        for heads in HEADS:
            # the large image's parity is in `memory`, and its affinity in PyTorch would not end
            judged = tokens < LARGE
            row = _row(batch, tokens, heads, max(3, repeat // 5), ceiling)
            if judged:
                verdicts = parity(2, (1, heads, tokens, DIM), CLASSES, CLASSES, torch.bfloat16, device="cuda")
                row["parity"] = [verdict.as_dict() for verdict in verdicts]
            yield name_of(batch, tokens, heads), row


def _row(batch: int, tokens: int, heads: int, repeat: int, ceiling: dict[str, float]) -> dict[str, Any]:
    queries, keys = layers_of(LAYERS, (batch, heads, tokens, DIM), torch.bfloat16, device="cuda")
    patches = tokens - CLASSES
    maps = maps_for(batch, CLASSES, patches, device="cuda")
    results: dict[str, Tensor] = {}

    def streaming() -> None:
        with use_kernels("triton"):
            results["streaming"] = affinity_propagate(queries, keys, maps, CLASSES)

    def accumulated() -> None:
        total = torch.zeros(batch, patches, patches, device="cuda")
        with use_kernels("triton"):
            for q, k in zip(queries, keys, strict=True):
                attention_aggregate(q, k, k, CLASSES, None, total)
        results["accumulated"] = maps @ total.transpose(-2, -1)

    def attention_alone() -> None:
        with use_kernels("triton"):
            for q, k in zip(queries, keys, strict=True):
                attention_aggregate(q, k, k, CLASSES)

    flops = 2 * LAYERS * batch * heads * patches * tokens * (DIM + CLASSES)
    row: dict[str, Any] = {
        "streaming": with_rates(measured(streaming, repeat), ceiling, flops=flops),
        "accumulated, attention included": measured(accumulated, repeat),
        "attention alone": measured(attention_alone, repeat),
        "chosen": choose_form(Problem(batch, heads, tokens, CLASSES, CLASSES, LAYERS, DIM, 2)),
    }
    if len(results) == 2:
        apart = (results["streaming"] - results["accumulated"]).abs().max()
        row["forms_apart"] = float(apart / results["accumulated"].abs().max())
    return row
