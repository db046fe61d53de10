"""Looks for the fastest tiles on this GPU, and keeps them in the user's cache (``kernels/_tiles.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.kernels.sizes import CLASSES, DIM
from benchmarks.kernels.timing import median_ms
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels._tiles import Tile, remember, use_tile
from wsss_rt.kernels.affinity_propagate import affinity_propagate
from wsss_rt.kernels.affinity_propagate import cases as propagate
from wsss_rt.kernels.attention_aggregate import attention_aggregate
from wsss_rt.kernels.attention_aggregate import cases as aggregate
from wsss_rt.kernels.masked_reattention import cases as reattend
from wsss_rt.kernels.masked_reattention import masked_reattention
from wsss_rt.kernels.proof.rule import Verdict, packed_heads

# bf16 and float16 alone: float32 is there to be exact
CANDIDATES = (
    Tile(128, 64, 8, 3),
    Tile(128, 64, 8, 2),
    Tile(128, 64, 4, 3),
    Tile(128, 128, 8, 3),
    Tile(128, 32, 4, 3),
    Tile(64, 64, 4, 3),
    Tile(64, 64, 8, 3),
    Tile(64, 32, 4, 3),
)
# of a tile that replaces another: less is noise
GAIN = 1.03


def timings(repeat: int, ceiling: dict[str, float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A row a kernel: milliseconds of each tile that passed its parity, and the one that is kept."""
    device = torch.cuda.get_device_name()
    for kernel, (work, judge) in cases().items():
        row: dict[str, Any] = {}
        best: tuple[float, Tile] | None = None
        for tile in CANDIDATES:
            # rows and columns of the affinity are those of the attention, where warps are its own
            with use_tile(kernel, tile):
                try:
                    passed = all(verdict.passed for verdict in judge())
                    taken = median_ms(work, max(5, repeat // 5)) if passed else None
                except Exception as error:  # noqa: BLE001 - a tile that does not compile or fit is no tile
                    row[str(tile)] = f"{type(error).__name__}: {error}"[:200]
                    continue
            row[str(tile)] = "did not pass" if taken is None else round(taken, 4)
            if taken is not None and (best is None or taken * GAIN < best[0]):
                best = taken, tile
        if best is not None:
            row["kept"] = str(remember(device, kernel, 2, DIM, best[1]).name)
        yield kernel, row


def cases() -> dict[str, tuple[Callable[[], Any], Callable[[], list[Verdict]]]]:
    """By kernel: what is timed, and what judges."""
    batch, heads, tokens = 16, 6, 733
    parts = packed_heads(batch, heads, tokens, DIM, torch.bfloat16, device="cuda")
    class_map, affinity = aggregate.accumulators(parts[0], CLASSES, (True, True))
    maps = propagate.maps_for(batch, CLASSES, tokens - CLASSES, device="cuda")
    selected = reattend.chosen(batch, tokens, 0.4, device="cuda")

    def forced(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with use_kernels("triton"):
                return call()

        return run

    def judged_aggregate() -> list[Verdict]:
        return aggregate.parity(2, heads, tokens, DIM, CLASSES, torch.bfloat16, device="cuda")

    return {
        "attend": (
            forced(lambda: attention_aggregate(*parts, CLASSES, class_map)),
            judged_aggregate,
        ),
        "affinity": (
            forced(lambda: attention_aggregate(*parts, CLASSES, None, affinity)),
            judged_aggregate,
        ),
        "propagate": (
            forced(lambda: affinity_propagate(parts[:1], parts[1:2], maps, CLASSES)),
            lambda: propagate.parity(
                1, (2, heads, tokens, DIM), CLASSES, CLASSES, torch.bfloat16, device="cuda"
            ),
        ),
        "reattend": (
            forced(lambda: masked_reattention(*parts, selected, scale=DIM**-0.5)),
            lambda: reattend.parity(2, heads, tokens, DIM, torch.bfloat16, device="cuda"),
        ),
    }
