"""Optimizers with the usual exemptions from weight decay, the learning rate over time, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from wsss_rt.errors import UsageError
from wsss_rt.training.config import LrUpdate, Optimizer, OptimSection, Schedule


def build_optimizer(model: nn.Module, section: OptimSection, *, batch: int) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that want a gradient.

    Biases, 1-D parameters and what ``model.no_weight_decay()`` names (tokens, position embeddings) do not
    decay; neither do positions under other names, unless ``decay_positions`` says so. Groups carry
    ``lr_factor``, by which the loop multiplies their rate: ``head_lr_factor`` for ``head_parameters()``.

    Args:
        model: the model.
        section: see :class:`OptimSection`.
        batch: images per optimizer step, for linear scaling of the rate.
    """
    named = getattr(model, "no_weight_decay", None)
    exempt = set(named()) if callable(named) else set()
    heads = getattr(model, "head_parameters", None)
    ahead = {id(parameter) for parameter in heads()} if callable(heads) else set()
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = name in exempt or (name.startswith("pos_embed") and not section.decay_positions)
            free = parameter.ndim <= 1 or name.endswith(".bias") or spared
            factor = section.head_lr_factor if id(parameter) in ahead else 1.0
            groups.setdefault((free, factor), []).append(parameter)
    accident = section.optimizer is Optimizer.SGD_DECAY_AS_MOMENTUM
    rate = peak_lr(section, batch=batch)
    listed: list[dict[str, Any]] = [
        {
            "params": members,
            "weight_decay": 0.0 if free or accident else section.weight_decay,
            "lr_factor": factor,
            "lr": rate * factor,
        }
        for (free, factor), members in sorted(groups.items(), key=lambda entry: entry[0])
    ]
    if section.optimizer is not Optimizer.ADAMW:
        momentum = section.weight_decay if accident else section.momentum
        return torch.optim.SGD(listed, lr=rate, momentum=momentum, nesterov=section.nesterov)
    return torch.optim.AdamW(listed, lr=rate, betas=_betas(section), fused=True)


def peak_lr(section: OptimSection, *, batch: int) -> float:
    """The learning rate after warm-up."""
    return section.lr * batch / section.lr_batch if section.lr_batch else section.lr


class LearningRate:
    """Learning rate as a function of the images seen, so that a resumed run continues on the same curve.

    Args:
        section: see :class:`OptimSection`.
        batch: images per optimizer step.
        total: images in the whole run.
        epoch: images per epoch; 0 for endless data.

    Raises:
        UsageError: steps at epochs of data that have none.
    """

    def __init__(self, section: OptimSection, *, batch: int, total: int, epoch: int) -> None:
        self._section, self._total, self._epoch = section, max(total, 1), epoch
        self._peak = peak_lr(section, batch=batch)
        if section.schedule in (Schedule.STEPS, Schedule.STEP_MULTIPLES) and not epoch:
            raise UsageError(
                f"optim.schedule = {str(section.schedule)!r} counts epochs, and scenes have none",
                fix="take cosine, poly or constant",
            )
        self._warmup = section.warmup_images or round(section.warmup_epochs * epoch)

    def at(self, seen: int) -> float:
        """Rate of the step that follows ``seen`` images."""
        section = self._section
        if section.lr_update is LrUpdate.EPOCH_LAGGED and self._epoch:
            seen = max(seen // self._epoch - 1, 0) * self._epoch
        if seen < self._warmup:
            return section.warmup_lr + (self._peak - section.warmup_lr) * seen / self._warmup
        if section.schedule is Schedule.CONSTANT:
            return self._peak
        if section.schedule in (Schedule.STEPS, Schedule.STEP_MULTIPLES):
            return float(self._peak * section.step_factor ** self._drops(seen // self._epoch + 1))
        # as in timm, the cosine counts from the start of training and the warm-up covers its beginning
        progress = min(seen / self._total, 1.0)
        if section.schedule is Schedule.POLY:
            remaining: float = (1 - progress) ** section.poly_power
            return section.min_lr + (self._peak - section.min_lr) * remaining
        return section.min_lr + 0.5 * (self._peak - section.min_lr) * (1 + math.cos(math.pi * progress))

    def _drops(self, epoch: int) -> int:
        """How often the rate has dropped when this epoch, counted from 1, has begun."""
        steps = set(self._section.step_epochs)
        if self._section.schedule is Schedule.STEPS:
            return sum(step <= epoch for step in steps)
        # once per epoch, however many steps divide it
        return sum(any(begun % step == 0 for step in steps) for begun in range(1, epoch + 1))


class WeightAverage:
    """Exponential moving average of the weights.

    Args:
        model: what is averaged.
        decay: of the average; it rises to this from 0.1, so that the first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live: dict[str, torch.Tensor] = dict(model.state_dict(keep_vars=True))
        self.average = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after optimizer step number ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        moving = [name for name, value in self.average.items() if value.is_floating_point()]
        # detach: the live entries are parameters, and the average is none
        torch._foreach_lerp_(
            [self.average[name] for name in moving], [self._live[name].detach() for name in moving], 1 - decay
        )
        for name, value in self.average.items():
            if not value.is_floating_point():
                value.copy_(self._live[name])

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a saved average."""
        for name, value in self.average.items():
            value.copy_(state[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for a while."""
        kept = {name: value.detach().clone() for name, value in self._live.items()}
        with torch.no_grad():
            for name, value in self._live.items():
                value.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self._live.items():
                    value.copy_(kept[name])


def _betas(section: OptimSection) -> tuple[float, float]:
    first, second = section.betas
    return first, second
