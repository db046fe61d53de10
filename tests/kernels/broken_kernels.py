"""The real child of ``wsss_rt.kernels.proof`` with kernels that are wrong, each in a way of its own."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from wsss_rt.kernels.map_to_mask import triton as to_mask
from wsss_rt.kernels.masked_reattention import triton as reattention
from wsss_rt.kernels.proof.child import main


def unlike(mass: Tensor, selected: Tensor, scores: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    priorities, refined = real_spread(mass, selected, scores, epsilon)
    return priorities * 1.001, refined


def unwritten(tokens: Tensor, *rest: object) -> Tensor:
    size = rest[4]
    return torch.empty((len(tokens), *size), device=tokens.device)  # type: ignore[misc]


def faulty(mass: Tensor, threshold: float) -> Tensor:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with DSA")


real_spread = reattention.spread_mass
reattention.spread_mass = unlike
reattention.select_tokens = faulty
to_mask.map_planes = unwritten

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
