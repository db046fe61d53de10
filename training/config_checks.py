"""Values of a configuration that no type rules out, and that make no sense."""

from __future__ import annotations

from wsss_rt.errors import UsageError, nearest
from wsss_rt.training.sections import SIZE_ORDERS, Optimizer, OptimSection, Schedule, TrainConfig


def check_values(config: TrainConfig) -> None:
    """Refuse values that have the right type and mean nothing.

    Raises:
        UsageError: names the key.
    """
    positive = {
        "model.img_size": config.model.img_size, "run.batch": config.run.batch,
        "optim.lr": config.optim.lr, "optim.accumulate": config.optim.accumulate,
        "optim.head_lr_factor": config.optim.head_lr_factor,
    }  # fmt: skip
    for name, value in positive.items():
        if value <= 0:
            raise UsageError(f"{name} = {value} must be above 0")
    if config.data.size_policy not in ("native", "short_side", "fixed"):
        policies = ("native", "short_side", "fixed")
        raise UsageError(
            f"data.size_policy = {config.data.size_policy!r} is not a choice",
            fix=nearest(config.data.size_policy, policies),
        )
    _check_optim(config.optim)
    if not 0 <= config.optim.ema < 1:
        raise UsageError(
            f"optim.ema = {config.optim.ema} must lie in 0..1", fix="0.999 is usual, 0 switches it off"
        )
    if (
        len(config.data.crop_scale) != 2
        or not 0 < config.data.crop_scale[0] <= config.data.crop_scale[1] <= 1
    ):
        raise UsageError(f"data.crop_scale = {config.data.crop_scale} must be [low, high] within 0..1")
    if any(len(size) != 2 or min(size) <= 0 for size in config.data.sizes):
        raise UsageError(f"data.sizes = {config.data.sizes} must be a list of [height, width]")
    if config.data.size_order not in SIZE_ORDERS:
        raise UsageError(f"data.size_order = {config.data.size_order!r} must be random or growing")
    if not 0 <= config.data.stride <= config.data.window:
        raise UsageError(
            f"data.stride = {config.data.stride} must lie in 0..data.window, which is {config.data.window}"
        )
    if config.data.close_ups < 0 or config.data.close_up_size < 0:
        raise UsageError("data.close_ups and data.close_up_size must not be negative")


def _check_optim(section: OptimSection) -> None:
    for name, value in {"momentum": section.momentum, "step_factor": section.step_factor}.items():
        if not 0 <= value <= 1:
            raise UsageError(f"optim.{name} = {value} must lie in 0..1")
    if section.nesterov and not (section.optimizer is Optimizer.SGD and section.momentum > 0):
        raise UsageError(
            "optim.nesterov looks ahead along a momentum, and there is none",
            fix='set optim.optimizer = "sgd" and optim.momentum = 0.9',
        )
    steps = section.step_epochs
    if any(isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1 for epoch in steps):
        raise UsageError(f"optim.step_epochs = {steps} must be a list of epochs, counted from 1")
    if section.schedule in (Schedule.STEPS, Schedule.STEP_MULTIPLES) and not steps:
        raise UsageError(
            f"optim.schedule = {str(section.schedule)!r} has no steps",
            fix="list them: optim.step_epochs = [15]",
        )
