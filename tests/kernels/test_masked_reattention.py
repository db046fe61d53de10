"""Selection and masked attention: the kernels against PyTorch and against numbers of the official code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss_rt.kernels import last_path, use_kernels
from wsss_rt.kernels.masked_reattention import masked_reattention, reference, select_tokens, spread_mass
from wsss_rt.kernels.masked_reattention.cases import parity
from wsss_rt.kernels.proof.rule import packed_heads


def by_kernel(mass: Tensor, threshold: float) -> Tensor:
    with use_kernels("triton"):
        selected = select_tokens(mass, threshold)
    assert last_path("select_tokens") == "triton[select]"
    return selected


@pytest.mark.parametrize("tokens", [1, 31, 197])
def test_selected_are_the_same_tokens(tokens: int, device: str) -> None:
    mass = torch.rand(3, tokens, generator=torch.Generator().manual_seed(tokens)).to(device)
    mass = mass / mass.sum(dim=-1, keepdim=True)
    for threshold in (0.3, 0.65, 2.0):
        # the margin says that no token's sum is within rounding of the threshold
        assert (reference.cumulative_mass(mass) - threshold).abs().min() > 1e-5
        assert torch.equal(by_kernel(mass, threshold), reference.select_tokens(mass, threshold))
    assert by_kernel(mass, 2.0).all()


def test_order_of_equal_masses_and_strictness(device: str) -> None:
    quarters = torch.full((2, 4), 0.25, device=device)
    quarters[1] = torch.tensor([0.125, 0.5, 0.125, 0.25])
    # exact in binary: what reaches the threshold exactly is left out
    assert by_kernel(quarters, 0.75).tolist() == [[True, True, False, False], [False, True, False, False]]
    assert by_kernel(quarters, 0.25).tolist() == [[False] * 4] * 2
    assert by_kernel(torch.empty(0, 4, device=device), 0.5).shape == (0, 4)


@pytest.mark.parametrize("case", ["random", "empty_dominant", "exact_boundary"])
def test_selection_of_the_official_code(goldens_dir: Path, case: str, device: str) -> None:
    golden = np.load(goldens_dir / "token_refinement" / "micro.npz", allow_pickle=False)
    mass = torch.from_numpy(golden[f"{case}__m"])[None].to(device)
    found = by_kernel(mass, float(golden[f"{case}__thr"]))
    assert found[0].int().tolist() == golden[f"{case}__b"].astype(int).tolist()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 2, 81, 64), torch.float32),
        ((1, 3, 49, 32), torch.float16),
        ((1, 2, 67, 64), torch.bfloat16),
        ((1, 1, 1, 32), torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("share", [0.0, 0.4], ids=["none-selected", "some-selected"])
def test_as_good_as_pytorch(
    shape: tuple[int, int, int, int], dtype: torch.dtype, share: float, device: str
) -> None:
    verdicts = parity(*shape, dtype, share=share, device=device)
    print(*(verdict.as_dict() for verdict in verdicts), sep="\n")
    assert all(verdict.passed for verdict in verdicts)
    assert last_path("masked_reattention") == "triton[reattend]"


@pytest.mark.parametrize("case", ["ms_soft", "ms_hard", "ms_none"])
def test_the_epsilons_of_the_official_code(goldens_dir: Path, case: str, device: str) -> None:
    """Queries that are the logits, keys and values that are unit vectors: what comes out is the softmax."""
    golden = np.load(goldens_dir / "token_refinement" / "micro.npz", allow_pickle=False)
    logits, policy, expected = (
        torch.from_numpy(golden[f"{case}__{key}"]).to(device) for key in ("logits", "policy", "attn")
    )
    tokens = logits.shape[-1]
    assert tokens == 16
    unit = torch.eye(tokens, device=device).expand(*logits.shape)
    with use_kernels("triton"):
        found = masked_reattention(logits, unit, unit, policy[None].bool(), scale=1.0)
    assert (found - expected).abs().max() < 1e-6


def test_some_queries_alone_are_exact(device: str) -> None:
    """The compact form: a row is what it is among all, by the kernel and by the reference, in any order."""
    q, k, v = packed_heads(2, 2, 37, 32, torch.float32, device=device)
    selected = torch.rand(2, 37, generator=torch.Generator().manual_seed(3)).to(device) < 0.4
    places = torch.tensor([[5, 0, 36, 7, 7], [1, 2, 3, 4, 30]], device=device)
    asking = torch.stack([q[image][:, places[image]] for image in range(2)])
    for mode in ("triton", "reference"):
        with use_kernels(mode):
            whole = masked_reattention(q, k, v, selected, scale=0.2)
            some = masked_reattention(asking, k, v, selected, scale=0.2, places=places)
        expected = torch.stack([whole[image][:, places[image]] for image in range(2)])
        torch.testing.assert_close(some, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"places must be \(2, 5\)"):
        masked_reattention(asking, k, v, selected, scale=0.2, places=places[:, :4])
    with pytest.raises(ValueError, match="must all be"):
        masked_reattention(asking, k, v, selected, scale=0.2)


@pytest.mark.parametrize("epsilon", [1e-6, 0.0])
def test_mass_is_spread_as_by_the_reference(epsilon: float, device: str) -> None:
    generator = torch.Generator().manual_seed(2)
    mass, scores = torch.rand(5, 1100, generator=generator), 40 * torch.randn(5, 1100, generator=generator)
    selected = torch.rand(5, 1100, generator=generator) < 0.3
    selected[1], selected[2] = False, True
    # scores without bounds: far below zero, and huge where they do not count
    scores[3] -= 300
    scores[4][~selected[4]] = 1e30
    given = [part.to(device) for part in (mass, selected, scores)]
    with use_kernels("triton"):
        found = spread_mass(*given, epsilon=epsilon)
    assert last_path("spread_mass") == "triton[spread]"
    with use_kernels("reference"):
        plain = spread_mass(*given, epsilon=epsilon)
    for ours, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(found[1][1], given[0][1])


def test_gradients_are_those_of_the_reference(device: str) -> None:
    selected = torch.rand(2, 19, generator=torch.Generator().manual_seed(1)).to(device) < 0.5
    gradients = []
    for mode in ("triton", "reference"):
        leaves = [
            part.clone().requires_grad_() for part in packed_heads(2, 1, 19, 32, torch.float32, device=device)
        ]
        with use_kernels(mode):
            out = masked_reattention(*leaves, selected, scale=0.2)
        (out**2).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, plain in zip(*gradients, strict=True):
        assert float(plain.abs().max()) > 0
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_wrong_shapes_are_named() -> None:
    heads = packed_heads(1, 1, 6, 32, torch.float32)
    with pytest.raises(ValueError, match=r"selected must be \(B, N\) bool"):
        masked_reattention(*heads, torch.ones(1, 6), scale=1.0)
