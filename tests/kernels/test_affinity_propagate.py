"""Streaming propagation: the kernel against plain PyTorch, both forms against each other, and their costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wsss_rt.kernels import KernelUnavailableError, last_path, use_kernels
from wsss_rt.kernels.affinity_propagate import Problem, affinity_propagate, choose_form, form_for
from wsss_rt.kernels.affinity_propagate.cases import layers_of, maps_for, parity
from wsss_rt.kernels.affinity_propagate.cost import accumulated_cost, streaming_cost
from wsss_rt.kernels.attention_aggregate import attention_aggregate
from wsss_rt.kernels.proof.rule import packed_heads


@pytest.mark.parametrize(
    ("layers", "shape", "classes", "channels", "dtype"),
    [
        (2, (2, 3, 75, 64), 20, 20, torch.float32),
        (3, (1, 2, 66, 32), 1, 3, torch.bfloat16),
        (1, (1, 2, 39, 64), 2, 130, torch.float16),
        (1, (1, 1, 2, 32), 1, 1, torch.float32),
        (1, (2, 1, 5, 32), 5, 4, torch.float32),
        (1, (1, 2, 17, 48), 0, 0, torch.float32),
    ],
    ids=str,
)
def test_as_good_as_pytorch(
    layers: int,
    shape: tuple[int, int, int, int],
    classes: int,
    channels: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    verdicts = parity(layers, shape, classes, channels, dtype, device=device)
    print(*(verdict.as_dict() for verdict in verdicts), sep="\n")
    assert all(verdict.passed for verdict in verdicts)
    assert last_path("affinity_propagate") == "triton[propagate]"


def test_both_forms_give_the_same(device: str) -> None:
    classes, tokens = 3, 40
    queries, keys = layers_of(3, (2, 2, tokens, 32), torch.float32, device=device)
    maps = maps_for(2, 5, tokens - classes, device=device)
    affinity = torch.zeros(2, tokens - classes, tokens - classes, device=device)
    with use_kernels("triton"):
        streamed = affinity_propagate(queries, keys, maps, classes)
        for q, k in zip(queries, keys, strict=True):
            attention_aggregate(q, k, k, classes, None, affinity)
    torch.testing.assert_close(maps @ affinity.transpose(1, 2), streamed, rtol=1e-5, atol=1e-6)


def test_no_gradient_is_lost_in_silence(device: str) -> None:
    queries, keys = layers_of(1, (1, 1, 6, 32), torch.float32, device=device)
    maps = maps_for(1, 2, 5, device=device).requires_grad_()
    affinity_propagate(queries, keys, maps, 1).sum().backward()
    assert last_path("affinity_propagate") == "reference" and maps.grad is not None
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="no backward pass"):
        affinity_propagate(queries, keys, maps, 1)


def test_what_does_not_fit_together_is_named() -> None:
    queries, keys = layers_of(2, (1, 1, 6, 32), torch.float32)
    with pytest.raises(ValueError, match="2 layers of queries and 1 of keys"):
        affinity_propagate(queries, keys[:1], torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match=r"maps must be \(1, 2, 5\)"):
        affinity_propagate(queries, keys, torch.zeros(1, 2, 6), 1)


# DeiT-S, 12 layers, bf16, on 500x375 px
PHOTO = Problem(16, 6, 733, 20, 20, 12, 64, 2)


def test_costs_are_those_of_a_count_by_hand() -> None:
    tiny = Problem(
        batch=1, heads=2, tokens=5, class_tokens=1, channels=3, layers=2, head_dim=8, itemsize=4, uses=3
    )
    accumulated, streaming = accumulated_cost(tiny), streaming_cost(tiny)
    # 4 x 4 pairs; a pair and head costs 2 * 8 for the product and 256 for the exponential
    assert accumulated.flops == 2 * (2 * 16 * (16 + 256)) + 3 * 4 * 16 * 3
    assert accumulated.bytes == 2 * (8 * 16 + 2 * 2 * 5 * 8 * 4) + (1 + 3) * 4 * 16
    assert accumulated.memory == 4 * 16
    # 4 x 5 pairs; three channels are padded to 16
    assert streaming.flops == 3 * 2 * (2 * 20 * (16 + 256 + 4 * 16))
    assert streaming.bytes == 3 * 2 * (2 * 2 * 5 * 8 * 4 + 8 * 3 * 4)
    assert streaming.memory == 3 * 2 * (2 * 5 * 8 * 4)


def test_memory_heads_and_uses_choose_the_form() -> None:
    base = replace(PHOTO, heads=12)
    assert choose_form(base) == "accumulated"
    assert accumulated_cost(base).time < streaming_cost(base).time
    # one head: N x N is moved for the work of one head alone
    few = replace(PHOTO, heads=1, channels=8)
    assert choose_form(few) == "streaming"
    assert choose_form(replace(few, uses=8)) == "accumulated"
    assert choose_form(replace(few, channels=200, uses=2)) == "accumulated"
    # 9,216 patches: four images are 1.4 GB of affinity
    large = replace(PHOTO, batch=1, tokens=9236)
    assert choose_form(large) == "accumulated"
    assert choose_form(replace(large, batch=4)) == "streaming"
    # neither fits: the smaller one
    assert choose_form(few, most_memory=0) == "accumulated"
    assert choose_form(replace(large, batch=64)) == "streaming"


def test_models_accumulate_where_the_kernel_would_not_run() -> None:
    q, k, _ = packed_heads(1, 1, 60, 32, torch.float32)
    many = packed_heads(1, 12, 60, 32, torch.float32)[:2]
    settings = {"class_tokens": 1, "channels": 1, "layers": 12}
    with use_kernels("triton"):
        assert form_for(q, k, **settings) == "streaming"
        assert form_for(*many, **settings, uses=10) == "accumulated"
        assert form_for(q.clone().requires_grad_(), k, **settings) == "accumulated"
    assert form_for(q, k, **settings) == "accumulated"
