"""The rule by which kernels are judged, and the inputs that proof, tests and timings share.

A kernel may err at most twice as much as PyTorch in the same type does, against float64, plus a little: so no
type needs a tolerance of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# of the largest value: what float32 sums in another order may differ by
FLOOR = 2e-6


@dataclass(frozen=True)
class Verdict:
    """One output of one case.

    Attributes:
        case: what was computed on what.
        output: which of the results.
        kernel: largest absolute error against float64.
        pytorch: the same of PyTorch in the kernel's type.
        limit: twice that, and the floor.
    """

    case: str
    output: str
    kernel: float
    pytorch: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the kernel's error is within the limit; NaN never is."""
        return self.kernel <= self.limit

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True)
class Check:
    """How an operator's kernel is held against its reference; each ``cases.py`` of an operator names its own.

    Attributes:
        judge: (device, type, small) to verdicts; ``small`` for Triton's interpreter.
        work: (device, type) to a call of realistic size, which is timed with the kernel and without.

    The type says nothing to a kernel that computes in float32 whatever comes in.
    """

    judge: Callable[[str, torch.dtype, bool], Iterable[Verdict]]
    work: Callable[[str, torch.dtype], Callable[[], Any]]


def judge(case: str, output: str, kernel: Tensor, pytorch: Tensor, exact: Tensor) -> Verdict:
    """Compare one output; empty ones agree."""
    if not kernel.shape == pytorch.shape == exact.shape:
        raise ValueError(f"{case}: {output} is {tuple(kernel.shape)}, and should be {tuple(exact.shape)}")
    if not exact.numel():
        return Verdict(case, output, 0.0, 0.0, 0.0)
    exact = exact.double()
    error, usual = (float((found.double() - exact).abs().max()) for found in (kernel, pytorch))
    return Verdict(case, output, error, usual, 2 * usual + FLOOR * float(exact.abs().max()))


def compare(
    case: str,
    outputs: Sequence[str],
    kernel: Callable[[], Sequence[Tensor]],
    plain: Callable[[bool], Sequence[Tensor]],
) -> list[Verdict]:
    """Verdicts on all outputs.

    Args:
        case: for the report.
        outputs: their names.
        kernel: gives them.
        plain: gives them by PyTorch; in float64 where its argument is True, else in the kernel's type.
    """
    found, usual, exact = kernel(), plain(False), plain(True)
    return [judge(case, name, *results) for name, *results in zip(outputs, found, usual, exact, strict=True)]


def packed_heads(
    batch: int,
    heads: int,
    tokens: int,
    dim: int,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    seed: int = 0,
    spread: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, T, d) as a model has them: views of one packed projection."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, tokens, 3, heads, dim, generator=generator)
    values[:, :, :2] *= spread
    q, k, v = values.to(device=device, dtype=dtype).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v
