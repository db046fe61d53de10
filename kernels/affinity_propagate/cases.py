"""affinity_propagate held against PyTorch: how a case is made and judged, and what the proof asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.affinity_propagate import OPERATOR, affinity_propagate, reference
from wsss_rt.kernels.proof.rule import Check, Verdict, compare, packed_heads


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
        q, k = ([part.double() for part in parts] for parts in (queries, keys))
        return [reference.affinity_propagate(q, k, maps.double(), classes, scale=scale)]

    sizes = "-".join(f"{name}{size}" for name, size in zip("BHTd", shape, strict=True))
    case = f"propagate L{layers}-{sizes}-C{classes}-M{channels}-{str(dtype).removeprefix('torch.')}"
    return compare(case, ["out"], kernel, plain)


def _judge(device: str, dtype: torch.dtype, small: bool) -> Iterator[Verdict]:
    if small:
        yield from parity(1, (1, 2, 37, 64), 20, 20, dtype, device=device)
        return
    yield from parity(1, (1, 1, 17, 48), 0, 3, dtype, device=device)
    yield from parity(2, (1, 2, 151, 32), 7, 80, dtype, device=device)
    yield from parity(2, (1, 2, 83, 128), 20, 20, dtype, device=device)
    yield from parity(3, (2, 6, 733, 64), 20, 20, dtype, device=device)


def _work(device: str, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Three layers of DeiT-S, maps of 20 classes on photographs of 500x375 px."""
    queries, keys = layers_of(3, (4, 6, 733, 64), dtype, device=device)
    maps = maps_for(4, 20, 713, device=device)
    return lambda: affinity_propagate(queries, keys, maps, 20)


CHECKS = {OPERATOR: Check(_judge, _work)}
