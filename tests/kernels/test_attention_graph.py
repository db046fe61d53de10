"""Attention as exported graphs hold it, and maps propagated along it, against plain operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsss_rt.kernels.attention_aggregate.graph import attention_with_mean
from wsss_rt.training.models import fusion


def heads(tokens: int) -> list[Tensor]:
    torch.manual_seed(tokens)
    return [torch.randn(2, 3, tokens, 8, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("rows", [None, 1])
@pytest.mark.parametrize("tokens", [1, 2, 7, 64, 65])
def test_it_is_attention(tokens: int, rows: int | None) -> None:
    q, k, v = heads(tokens)
    mixed, mean = attention_with_mean(q, k, v, rows, scale=0.3)
    attention = torch.softmax(q @ k.transpose(-2, -1) * 0.3, dim=-1)
    torch.testing.assert_close(mixed, attention @ v, rtol=0, atol=1e-12)
    torch.testing.assert_close(mean, attention.mean(dim=1)[:, :rows], rtol=0, atol=1e-12)


def rounded(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().to(tensor.dtype)


def test_low_maps_on_a_height_survive_rounded_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products rounded to bfloat16, as OpenVINO gives them, cost a fifth of what they did."""
    torch.manual_seed(0)
    affinity = rounded(torch.softmax(torch.randn(1, 150, 150, dtype=torch.float64), dim=-1) * 12)
    maps = rounded(1 + 0.2 * torch.rand(1, 4, 10, 15, dtype=torch.float64))
    exact = fusion.refine(affinity, maps)
    span = float(exact.amax() - exact.amin())
    found = {}
    product = Tensor.__matmul__
    with monkeypatch.context() as patched:
        patched.setattr(
            Tensor, "__matmul__", lambda one, other: rounded(product(rounded(one), rounded(other)))
        )
        found["plain"] = fusion.refine(affinity, maps)
        patched.setattr(fusion, "tracing_onnx", lambda: True)
        found["around"] = fusion.refine(affinity, maps)
    error = {name: float((value - exact).std()) / span for name, value in found.items()}
    assert error["plain"] > 0.005
    assert error["around"] < error["plain"] / 5


def test_the_height_changes_nothing_in_exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    affinity = torch.rand(2, 35, 35, dtype=torch.float64)
    maps = torch.randn(2, 3, 5, 7, dtype=torch.float64) * 100 - 40
    plain = fusion.refine(affinity, maps)
    monkeypatch.setattr(fusion, "tracing_onnx", lambda: True)
    torch.testing.assert_close(fusion.refine(affinity, maps), plain, rtol=1e-12, atol=1e-9)
