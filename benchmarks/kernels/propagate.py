"""affinity_propagate: how a case is made, run and judged."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.parity import Verdict, compare, packed_heads
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.affinity_propagate import affinity_propagate, reference


def layers_of(
    layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, *, device: str = "cpu"
) -> tuple[list[Tensor], list[Tensor]]:
    """Queries and keys of several layers, each (B, H, T, d)."""
    made = [packed_heads(*shape, dtype, device=device, seed=seed) for seed in range(layers)]
    return [heads[0] for heads in made], [heads[1] for heads in made]


def maps_for(batch: int, channels: int, patches: int, *, device: str = "cpu") -> Tensor:
    """Maps of 0..1, (B, channels, N) float32."""
    generator = torch.Generator().manual_seed(patches)
    return torch.rand(batch, channels, patches, generator=generator).to(device)


def parity(
    layers: int,
    shape: tuple[int, int, int, int],
    classes: int,
    channels: int,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
) -> list[Verdict]:
    """Verdict on the output; ``shape`` is (B, H, T, d)."""
    queries, keys = layers_of(layers, shape, dtype, device=device)
    maps = maps_for(shape[0], channels, shape[2] - classes, device=device)
    scale = shape[3] ** -0.5

    def kernel() -> list[Tensor]:
        with use_kernels("triton"):
            return [affinity_propagate(queries, keys, maps, classes)]

    def plain(exact: bool) -> list[Tensor]:
        if not exact:
            return [reference.affinity_propagate(queries, keys, maps, classes, scale=scale, upcast=False)]
        wide = [[part.double() for part in parts] for parts in (queries, keys)]
        return [reference.affinity_propagate(*wide, maps.double(), classes, scale=scale)]

    sizes = "-".join(f"{name}{size}" for name, size in zip("BHTd", shape, strict=True))
    case = f"propagate L{layers}-{sizes}-C{classes}-M{channels}-{str(dtype).removeprefix('torch.')}"
    return compare(case, ["out"], kernel, plain)
