"""attention_aggregate on a GPU: what judges it there, and its times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.sizes import CLASSES, DIM, HEADS, SIZES, TYPES, name_of, shapes
from benchmarks.kernels.timing import measured, with_rates
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.attention_aggregate import attention_aggregate, reference
from wsss_rt.kernels.attention_aggregate.cases import accumulators, parity
from wsss_rt.kernels.proof.rule import Verdict, packed_heads


def parity_of_all(device: str, *, small: bool) -> list[Verdict]:
    """Verdicts in every type; ``small`` for the interpreter."""
    found: list[Verdict] = []
    for dtype in TYPES:
        for batch, heads, tokens in shapes(small):
            for classes in (1, CLASSES):
                found += parity(batch, heads, tokens, DIM, classes, dtype, device=device)
    # logits of about 200
    return found + parity(1, 2, 70, DIM, 1, torch.float32, wanted=(True, False), device=device, spread=8.0)


def timings(repeat: int, ceiling: dict[str, float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One layer with both maps, with class rows alone, and the ways to do without the kernel."""
    for batch, tokens in SIZES:
        for heads in HEADS:
            yield name_of(batch, tokens, heads), _row(batch, tokens, heads, repeat, ceiling)


def _row(batch: int, tokens: int, heads: int, repeat: int, ceiling: dict[str, float]) -> dict[str, Any]:
    parts = packed_heads(batch, heads, tokens, DIM, torch.bfloat16, device="cuda")
    class_map, affinity = accumulators(parts[0], CLASSES, (True, True))
    patches = tokens - CLASSES

    def eager() -> Tensor:
        return reference.attention_aggregate(
            *parts, CLASSES, class_map, affinity, scale=DIM**-0.5, upcast=False
        )

    def kernel(classes: int, *maps: Tensor | None) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with use_kernels("triton"):
                return attention_aggregate(*parts, classes, *maps)

        return run

    product = 2 * batch * heads * DIM * tokens**2
    heads_moved = 2 * 4 * batch * heads * tokens * DIM
    maps_moved = 2 * 4 * batch * patches * tokens
    one_row = torch.zeros(batch, 1, tokens - 1, device="cuda")
    written = measured(lambda: (class_map.add_(1), affinity.add_(1)), repeat)
    row: dict[str, Any] = {
        "triton": with_rates(
            measured(kernel(CLASSES, class_map, affinity), repeat),
            ceiling,
            flops=2 * product + 2 * batch * heads * DIM * patches**2,
            moved=heads_moved + maps_moved,
        ),
        "triton, class rows": with_rates(
            measured(kernel(CLASSES, class_map, None), repeat), ceiling, flops=2 * product, moved=heads_moved
        ),
        "triton, one class token": with_rates(
            measured(kernel(1, one_row, None), repeat), ceiling, flops=2 * product, moved=heads_moved
        ),
        "triton, no maps": with_rates(
            measured(kernel(CLASSES, None, None), repeat), ceiling, flops=2 * product, moved=heads_moved
        ),
        "sdpa, no maps": with_rates(
            measured(lambda: functional.scaled_dot_product_attention(*parts), repeat),
            ceiling,
            flops=2 * product,
            moved=heads_moved,
        ),
        "maps written once": written,
        "eager": measured(eager, repeat),
        "compiled": measured(torch.compile(eager), repeat),
        "parity": [
            verdict.as_dict()
            for verdict in parity(min(batch, 2), heads, tokens, DIM, CLASSES, torch.bfloat16, device="cuda")
        ],
    }
    times = {name: way["ms"] for name, way in row.items() if isinstance(way, dict)}
    if {"triton", "sdpa, no maps", "maps written once"} <= set(times):
        bound = times["sdpa, no maps"] + times["maps written once"]
        row["of sdpa and writing"] = round(times["triton"] / bound, 3)
    if {"triton", "eager"} <= set(times):
        row["times eager"] = round(times["eager"] / times["triton"], 2)
    return row
