"""map_to_mask on a GPU: what judges it there, and its times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from wsss_rt import localize
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.map_to_mask import map_to_mask, merge_grids
from wsss_rt.kernels.map_to_mask.cases import BACKGROUND, maps_of, parity
from wsss_rt.kernels.proof.rule import Verdict

# photographs of the kinds that label meets: tokens, pixels, present classes
PHOTOS = (
    ((14, 14), (224, 224), 2),
    ((23, 31), (375, 500), 3),
    ((48, 48), (768, 768), 3),
    ((96, 96), (1536, 1536), 5),
)


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


def timings(repeat: int, ceiling: dict[str, float]) -> Iterator[tuple[str, Any]]:
    """Photographs of several sizes: the kernels, plain PyTorch, and numpy with the copy of the maps it needs.

    Args:
        repeat: runs.
        ceiling: what the card reaches, as ``timing.ceilings`` gives it.
    """
    from benchmarks.kernels.timing import measured, with_rates

    for tokens, size, count in PHOTOS:
        maps, present = maps_of((tokens,), 20, device="cuda"), list(range(count))
        row = {
            mode: measured(partial(_on_device, mode, maps, present, size), repeat)
            for mode in ("triton", "reference")
        }
        # the mask is all that must be written; tokens are read once by each of two launches
        moved = size[0] * size[1] + 2 * 4 * count * tokens[0] * tokens[1]
        row["triton"] = with_rates(row["triton"], ceiling, moved=moved)
        row["numpy, copy included"] = {"ms": round(_host_ms(maps, present, size), 4)}
        yield f"{size[0]}x{size[1]}-K{count}", row


def _on_device(mode: str, maps: list[Tensor], present: list[int], size: tuple[int, int]) -> Tensor:
    tokens, grids = merge_grids(maps, present)
    with use_kernels(mode):
        return map_to_mask(tokens, grids, present, size, background=BACKGROUND)[0]


def _host_ms(maps: list[Tensor], present: list[int], size: tuple[int, int], runs: int = 5) -> float:
    began = time.perf_counter()
    for _ in range(runs):
        planes = localize.merge_passes([part.cpu().numpy() for part in maps], present, size=size)
        localize.decide(planes, present, background=BACKGROUND)
    return 1e3 * (time.perf_counter() - began) / runs
