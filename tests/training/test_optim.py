"""Weight decay's exemptions, the learning rate over time, and averaged weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from wsss_rt.errors import UsageError
from wsss_rt.training.config import LrUpdate, Optimizer, OptimSection, Schedule, build_config
from wsss_rt.training.models import create_model
from wsss_rt.training.optim import LearningRate, WeightAverage, build_optimizer, peak_lr


def test_decay_spares_biases_vectors_tokens_and_positions() -> None:
    model = create_model("mctformer-v2", num_classes=3, img_size=64, backbone="vit_test_tiny")
    optimizer = build_optimizer(model, OptimSection(weight_decay=0.05), batch=4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups
    }
    assert groups[0.05] | groups[0.0] == set(names.values())
    assert {"cls_token", "pos_embed", "patch_embed.proj.bias", "blocks.0.norm1.weight"} <= groups[0.0]
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"} <= groups[0.05]


def test_the_official_rate_of_voc() -> None:
    section = OptimSection(
        lr=5e-4, lr_batch=512, min_lr=1e-5, warmup_lr=1e-6, warmup_epochs=5, lr_update=LrUpdate.EPOCH_LAGGED
    )
    assert peak_lr(section, batch=64) == pytest.approx(6.25e-5)
    rate = LearningRate(section, batch=64, total=60 * 1000, epoch=1000)
    # the epoch that has just ended decides: epochs 0 and 1 both run at the rate of epoch 0
    assert rate.at(0) == rate.at(1999) == pytest.approx(1e-6)
    assert rate.at(2000) == rate.at(2999) == pytest.approx(1e-6 + (6.25e-5 - 1e-6) / 5)
    cosine = 1e-5 + 0.5 * (6.25e-5 - 1e-5) * (1 + math.cos(math.pi * 29 / 60))
    assert rate.at(30 * 1000) == pytest.approx(cosine)


def test_positions_under_other_names_decay_by_accident_only() -> None:
    model = nn.Module()
    model.pos_embed_pat = nn.Parameter(torch.ones(1, 4, 2))
    for accident in (False, True):
        section = OptimSection(weight_decay=0.05, decay_positions=accident)
        (group,) = build_optimizer(model, section, batch=4).param_groups
        assert group["weight_decay"] == (0.05 if accident else 0.0)


def test_the_official_rate_of_acr() -> None:
    section = build_config("acr", recipe="voc-acr-official").optim
    rate = LearningRate(section, batch=4, total=1000, epoch=100)
    assert rate.at(0) == 0.05 and rate.at(1000) == 0
    assert rate.at(500) == pytest.approx(0.05 * 0.5**0.9)


def test_decay_lands_in_the_momentum_only_by_name() -> None:
    def after_two_steps(optimizer: Optimizer) -> float:
        model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            model.weight.fill_(2.0)
        section = OptimSection(optimizer=optimizer, lr=0.1, weight_decay=0.5, momentum=0.25)
        built = build_optimizer(model, section, batch=1)
        assert isinstance(built, torch.optim.SGD)
        for _ in range(2):
            model.weight.grad = torch.ones_like(model.weight)
            built.step()
        return float(model.weight.detach())

    # momentum 0.25, decay 0.5: the gradient is 1 + 0.5 w, and the second step keeps a quarter of the first
    first = 1 + 0.5 * 2.0
    second = 0.25 * first + 1 + 0.5 * (2.0 - 0.1 * first)
    assert after_two_steps(Optimizer.SGD) == pytest.approx(2.0 - 0.1 * (first + second))
    # momentum 0.5, no decay: 1, then 0.5 * 1 + 1
    assert after_two_steps(Optimizer.SGD_DECAY_AS_MOMENTUM) == pytest.approx(2.0 - 0.1 * (1 + 1.5))


def test_the_official_steps_of_token_refinement() -> None:
    def drops(schedule: Schedule, steps: list[int], epochs: int) -> list[int]:
        section = OptimSection(lr=1.0, schedule=schedule, step_epochs=steps, step_factor=0.5)
        rate = LearningRate(section, batch=1, total=epochs * 10, epoch=10)
        values = [1.0, *(rate.at(10 * epoch) for epoch in range(epochs))]
        assert all(rate.at(10 * epoch + 9) == values[epoch + 1] for epoch in range(epochs))
        return [n for n, (a, b) in enumerate(zip(values, values[1:], strict=False), start=1) if b == a / 2]

    assert drops(Schedule.STEPS, [15], 30) == [15]
    assert drops(Schedule.STEP_MULTIPLES, [15], 30) == [15, 30]
    assert drops(Schedule.STEPS, [2, 4, 6, 8], 12) == [2, 4, 6, 8]
    assert drops(Schedule.STEP_MULTIPLES, [2, 4, 6, 8], 12) == [2, 4, 6, 8, 10, 12]
    with pytest.raises(UsageError, match="scenes have none"):
        LearningRate(OptimSection(schedule=Schedule.STEPS, step_epochs=[1]), batch=1, total=9, epoch=0)


def test_the_sensible_rate_moves_with_every_step() -> None:
    section = OptimSection(lr=1.0, min_lr=0.1, warmup_lr=0.0, warmup_images=100)
    rate = LearningRate(section, batch=1, total=1000, epoch=0)
    assert rate.at(0) == 0 and rate.at(50) == pytest.approx(0.5)
    values = [rate.at(seen) for seen in range(100, 1001)]
    assert all(later < earlier for earlier, later in zip(values, values[1:], strict=False))
    assert values[-1] == pytest.approx(0.1)
    constant = LearningRate(OptimSection(lr=1.0, schedule=Schedule.CONSTANT), batch=1, total=10, epoch=0)
    assert constant.at(9) == 1.0


def test_the_average_follows_the_weights_and_gives_them_back() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = WeightAverage(model, 0.5)
    for step in range(1, 200):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(step)
    # an average with decay d lags a ramp by d / (1 - d) steps
    assert average.average["weight"][0, 0].item() == pytest.approx(199 - 1, abs=1e-3)
    with average.applied():
        assert model.weight[0, 0].item() == pytest.approx(198, abs=1e-3)
    assert model.weight[0, 0].item() == 199
