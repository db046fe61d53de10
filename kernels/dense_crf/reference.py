"""Mean field of a dense CRF in plain PyTorch: what the kernels are held against, and what else runs."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_rt.kernels.dense_crf.lattice import Lattice


def filtered(lattice: Lattice, q: Tensor) -> Tensor:
    """Splat, blur and slice: a Gaussian filter of values (C, P), in their own type."""
    q = q.T
    grid = q.new_zeros((lattice.neighbours.shape[2] + 1, q.shape[1]))
    for vertices, weights in zip(lattice.vertices, lattice.weights, strict=True):
        grid.index_add_(0, vertices, q * weights.to(q.dtype)[:, None])
    for before, after in lattice.neighbours.long().unbind(0):
        # -1 is the last row, which stays zero: it stands for every vertex that is not there
        grid[:-1] = grid[:-1] + 0.5 * (grid[before] + grid[after])
    found = torch.zeros_like(q)
    for vertices, weights in zip(lattice.vertices.long(), lattice.weights, strict=True):
        found += weights.to(q.dtype)[:, None] * grid[vertices]
    return found.T


def density(lattice: Lattice) -> Tensor:
    """The filter of ones, (P,), in the type of the weights."""
    return filtered(lattice, torch.ones_like(lattice.weights[:1]))[0]


def mean_field(log_p: Tensor, lattice: Lattice, sizes: list[int], iterations: int, stop: float) -> Tensor:
    """Marginals (C, P) of log-probabilities (C, P), of images of these numbers of pixels one after another.

    Every image ends for itself: one step after the first that changed at most ``stop`` of its labels.
    """
    counts = torch.tensor(sizes, device=log_p.device)
    owner = torch.arange(len(sizes), device=log_p.device).repeat_interleave(counts)
    settled = (counts * stop).long()
    left = torch.full_like(counts, iterations)
    q, labels = log_p.softmax(dim=0), log_p.argmax(dim=0)
    for _ in range(iterations):
        energy = log_p + filtered(lattice, q)
        if stop == 0:
            q = energy.softmax(dim=0)
            continue
        q = torch.where(left[owner] > 0, energy.softmax(dim=0), q)
        before, labels = labels, energy.argmax(dim=0)
        changed = torch.zeros_like(left).index_add_(0, owner, (labels != before).long())
        left = torch.where((left > 2) & (changed <= settled), 1, (left - 1).clamp(min=0))
    return q
