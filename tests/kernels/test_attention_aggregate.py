"""Attention with maps: the kernel against plain PyTorch, and when which of the two runs."""

from __future__ import annotations

import pytest
import torch

from wsss_rt.errors import UsageError
from wsss_rt.kernels import KernelUnavailableError, last_path, use_kernels
from wsss_rt.kernels.attention_aggregate import attention_aggregate
from wsss_rt.kernels.attention_aggregate.cases import accumulators, parity
from wsss_rt.kernels.proof.rule import packed_heads

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
BOTH, ROWS, NONE = (True, True), (True, False), (False, False)


@pytest.mark.parametrize(
    ("shape", "dtype", "wanted", "launched"),
    [
        # batch, heads, tokens, head dim, class tokens
        ((2, 3, 83, 64, 20), FULL, BOTH, "attend,class_rows,affinity_block"),
        ((1, 2, 151, 32, 7), FULL, BOTH, "attend,class_rows,affinity_block"),
        ((2, 2, 71, 64, 20), HALF, BOTH, "attend,class_rows,affinity_block"),
        ((1, 3, 137, 64, 5), BRAIN, BOTH, "attend,class_rows,affinity_block"),
        ((2, 2, 66, 32, 1), BRAIN, ROWS, "attend,class_rows"),
        ((1, 6, 197, 64, 1), FULL, ROWS, "attend,class_rows"),
        ((2, 2, 33, 64, 4), HALF, BOTH, "attend,class_rows,affinity_block"),
        ((1, 1, 17, 48, 0), FULL, (False, True), "attend,affinity_block"),
        ((1, 2, 65, 16, 20), FULL, NONE, "attend"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_maps_and_output_are_as_good_as_those_of_pytorch(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    wanted: tuple[bool, bool],
    launched: str,
    device: str,
) -> None:
    verdicts = parity(*shape, dtype, wanted=wanted, device=device)
    print(*(verdict.as_dict() for verdict in verdicts), sep="\n")
    assert len(verdicts) == 1 + sum(wanted)
    assert [verdict for verdict in verdicts if not verdict.passed] == []


def test_the_launches_are_those_that_were_asked_for(device: str) -> None:
    heads = packed_heads(1, 2, 24, 32, FULL, device=device)
    expected = {
        (20, BOTH): "triton[attend,class_rows,affinity_block]",
        (1, BOTH): "triton[attend,class_rows,affinity_block]",
        (1, ROWS): "triton[attend,class_rows]",
        (20, NONE): "triton[attend]",
        (0, BOTH): "triton[attend,affinity_block]",
    }
    for (classes, wanted), path in expected.items():
        with use_kernels("triton"):
            attention_aggregate(*heads, classes, *accumulators(heads[0], classes, wanted))
        assert last_path("attention_aggregate") == path


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 32, 1), (1, 2, 1, 64, 0), (3, 1, 5, 32, 5), (0, 2, 9, 32, 2)],
    ids=["one-class-token", "one-patch", "no-patches", "no-images"],
)
def test_the_smallest_inputs(shape: tuple[int, int, int, int, int], device: str) -> None:
    assert all(verdict.passed for verdict in parity(*shape, FULL, device=device))


def test_logits_far_apart_neither_overflow_nor_vanish(device: str) -> None:
    """Logits of about 200: exponentials that no float32 could hold."""
    for classes, wanted in ((5, BOTH), (1, ROWS)):
        verdicts = parity(1, 2, 70, 64, classes, FULL, wanted=wanted, device=device, spread=8.0)
        assert all(verdict.passed for verdict in verdicts), verdicts


def test_layers_add_up_in_the_accumulators(device: str) -> None:
    classes, totals = 2, []
    for mode in ("triton", "reference"):
        maps = accumulators(packed_heads(1, 2, 12, 32, FULL, device=device)[0], classes, BOTH)
        for seed, weight in enumerate((1.0, 2.0, -0.5)):
            heads = packed_heads(1, 2, 12, 32, FULL, device=device, seed=seed)
            with use_kernels(mode):
                attention_aggregate(*heads, classes, *maps, weight)
        totals.append(maps)
    for ours, plain in zip(*totals, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=2e-6)
    # each row of a softmax sums to 1, so the maps' rows and the attention to class tokens sum to the weights
    assert (totals[0][1] - 0.5).sum(dim=-1).max() < 2.5


def test_the_reference_runs_where_a_gradient_is_needed(device: str) -> None:
    q, k, v = (part.clone().requires_grad_() for part in packed_heads(1, 1, 6, 32, FULL, device=device))
    maps = accumulators(q, 1, BOTH)
    attention_aggregate(q, k, v, 1, *maps)
    assert last_path("attention_aggregate") == "reference"
    assert maps[1] is not None
    (maps[1] ** 2).sum().backward()
    assert q.grad is not None and float(q.grad.abs().max()) > 0
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="no backward pass"):
        attention_aggregate(q, k, v, 1)


def test_kernels_that_are_forced_and_cannot_run_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = packed_heads(1, 1, 4, 32, torch.float64)
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="float64"):
        attention_aggregate(*heads, 1)
    wide = packed_heads(1, 1, 4, 256, FULL)
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="256 wide"):
        attention_aggregate(*wide, 1)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("WSSS_RT_KERNELS", "triton")
    with pytest.raises(KernelUnavailableError, match="not on a GPU.*WSSS_RT_KERNELS=auto"):
        attention_aggregate(*packed_heads(1, 1, 4, 32, FULL), 1)
    monkeypatch.setenv("WSSS_RT_KERNELS", "trition")
    with pytest.raises(UsageError, match="did you mean 'triton'"):
        attention_aggregate(*packed_heads(1, 1, 4, 32, FULL), 1)
    monkeypatch.setenv("WSSS_RT_KERNELS", "auto")
    attention_aggregate(*packed_heads(1, 1, 4, 32, FULL), 1)
    assert last_path("attention_aggregate") == "reference"


def test_wrong_accumulators_are_named() -> None:
    heads = packed_heads(1, 1, 6, 32, FULL)
    with pytest.raises(ValueError, match=r"affinity must be \(1, 4, 4\)"):
        attention_aggregate(*heads, 2, None, torch.zeros(1, 6, 6))
    with pytest.raises(ValueError, match="float32"):
        attention_aggregate(*heads, 2, torch.zeros(1, 2, 4, dtype=torch.float16))
    with pytest.raises(ValueError, match="9 of 6 tokens"):
        attention_aggregate(*heads, 9)
