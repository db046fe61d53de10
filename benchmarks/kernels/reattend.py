"""masked_reattention: how a case is made, run and judged."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.kernels.parity import Verdict, compare, packed_heads
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
