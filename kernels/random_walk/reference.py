"""Steps of a random walk in plain PyTorch: what the kernel is held against, and what runs without one."""

from __future__ import annotations

from torch import Tensor

from wsss_rt.kernels.random_walk.transitions import Transitions


def walk(values: Tensor, by: Transitions, steps: int) -> Tensor:
    """Values (B, C, n) after some steps, in their own type.

    A step adds weighted differences to the neighbours, which is a mean of old values with weights that sum to
    1 without ever summing weights that only nearly do: what is constant stays so, to the last bit.
    """
    cells = values.shape[-1]
    for _ in range(steps):
        change = values.new_zeros(values.shape)
        for kind, shift in enumerate(by.shifts):
            flow = values[..., shift:] - values[..., : cells - shift]
            flow *= by.weights[:, kind, None, : cells - shift]
            change[..., : cells - shift] += flow
            change[..., shift:] -= flow
        values = values + change * by.share[:, None]
    return values
