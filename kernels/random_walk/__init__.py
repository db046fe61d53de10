"""The sparse random walk over pairwise affinity (PSA, CVPR 2018) on the device."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from wsss_rt.kernels._dispatch import choose_triton, needs_gradient, record
from wsss_rt.kernels.random_walk import reference
from wsss_rt.kernels.random_walk.transitions import offsets_of, transitions

OPERATOR = "random_walk"


def random_walk(
    scores: Tensor, affinity: Tensor, *, beta: float = 8.0, steps: int = 64, radius: int = 5
) -> Tensor:
    """Spread scores over cells of high affinity, as ``wsss_rt.refine.random_walk.walk`` does, to 2e-5.

    Args:
        scores: (B, C, rows, columns) float32, means of the cells.
        affinity: (B, K, rows, columns) float32 in 0..1, what a cell and its neighbour have in common;
            34 planes for pairs nearer than 5 cells: (0, 1) to (0, 4), then rows 1 to 4, columns -4 to 4.
        beta: exponent of the affinity, > 0.
        steps: of the walk, >= 0.
        radius: pairs are nearer than this; at most the affinity's own radius.

    Returns:
        (B, C, rows, columns) float32, in the range of the scores. Planes that are constant stay as they are.

    Raises:
        ValueError: a shape or type is not as above.
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and the kernel cannot run.
    """
    if scores.dim() != 4 or affinity.dim() != 4 or scores.shape[::2] != affinity.shape[::2]:
        shapes = f"{tuple(scores.shape)} and {tuple(affinity.shape)}"
        raise ValueError(f"scores (B, C, rows, columns) and affinity (B, K, rows, columns) are {shapes}")
    if scores.shape[3] != affinity.shape[3] or scores.device != affinity.device:
        raise ValueError(f"scores are {tuple(scores.shape)} and affinity {tuple(affinity.shape)}")
    if scores.dtype != torch.float32 or affinity.dtype != torch.float32:
        raise ValueError(f"scores and affinity must be float32, not {scores.dtype} and {affinity.dtype}")
    if offsets_of(affinity.shape[1]) is None:
        raise ValueError(f"{affinity.shape[1]} planes of affinity are those of no radius")
    refusal = None
    if needs_gradient(scores, affinity):
        refusal = "it has no backward pass, and a gradient is asked for"
    path: ModuleType = reference
    if choose_triton(OPERATOR, scores, affinity, refusal=refusal):
        from wsss_rt.kernels.random_walk import triton as path
    values = scores.flatten(2)
    record(OPERATOR, "reference" if path is reference else f"triton[{path.launches(values.shape[2], steps)}]")
    walked: Tensor = path.walk(values, transitions(affinity, beta=beta, radius=radius), steps)
    return walked.view(scores.shape)
