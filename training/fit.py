"""The training loop: Lightning Fabric around a method's ``losses``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric

from wsss_rt.errors import UsageError, WsssError
from wsss_rt.training import resume as resumption
from wsss_rt.training.checkpoints import save_run
from wsss_rt.training.config import TrainConfig
from wsss_rt.training.data.build import TrainingData
from wsss_rt.training.data.loader import BatchOrder, batch_sizes, build_loader
from wsss_rt.training.data.sources import Cached
from wsss_rt.training.data.transforms import normalise
from wsss_rt.training.describe import cores, input_spec, run_config, validation_name
from wsss_rt.training.interrupt import Interrupted, StopSignal
from wsss_rt.training.journal import LOG, Journal, Progress, duration
from wsss_rt.training.optim import LearningRate, WeightAverage, build_optimizer
from wsss_rt.training.plot import plot_run
from wsss_rt.training.setup import (
    new_model,
    open_fabric,
    planned_images,
    prove_kernels,
    resolve_precision,
)
from wsss_rt.training.tasks import Look, task_of

_STEP_SEED = 14


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        folder: the run folder.
        images: training images seen.
        seconds: time in the loop, over all sessions.
        validation: the last one's figures; empty without validation images.
    """

    folder: Path
    images: int
    seconds: float
    validation: dict[str, Any]


def fit(
    config: TrainConfig,
    data: TrainingData,
    out: Path,
    *,
    resume: bool = True,
    say: Callable[[str], None] | None = None,
) -> FitResult:
    """Train, and write the run folder.

    The run is a function of config, data and seed: batches, augmentation and stochastic depth are drawn from
    the number of the step, so that a resumed run continues exactly where the saved state stood.

    Args:
        config: the run.
        data: its data.
        out: run folder; a state in it is continued.
        resume: False starts over.
        say: told what happens, beside progress.

    Raises:
        UsageError: settings that don't fit the data.
        WsssError: a state of another configuration, an unreadable image, or a loss that is not a number.
        Interrupted: stopped by a signal, after the state was saved.
    """
    total = planned_images(config, data)
    state = resumption.read_state(out, config, data.fingerprint) if resume else None
    fabric = open_fabric(config)
    fabric.launch()
    return _Loop(config, data, out, total=total, fabric=fabric, say=say or _silent).run(state)


def _silent(_: str) -> None:
    """Says nothing."""


class _Loop:
    """One run; exists so that its parts have names."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        out: Path,
        *,
        total: int,
        fabric: Fabric,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.data, self.out, self.total, self.fabric, self.say = (
            config,
            data,
            out,
            total,
            fabric,
            say,
        )
        self.per_step = config.run.batch * config.optim.accumulate
        if config.run.batch % fabric.world_size:
            raise UsageError(f"a batch of {config.run.batch} cannot be shared by {fabric.world_size} devices")
        torch.manual_seed(config.run.seed)
        self.bare = new_model(config, num_classes=len(data.classes))
        # of several processes one checks, and the others wait for it
        told = say if fabric.is_global_zero else _silent
        prove_kernels(self.bare, fabric.device, config.run.precision, told)
        self.task = task_of(self.bare, num_classes=len(data.classes))
        if config.run.compile:
            self.bare.losses = torch.compile(self.bare.losses, dynamic=False)  # type: ignore[method-assign]
        optimizer = build_optimizer(self.bare, config.optim, batch=self.per_step)
        self.model, self.optimizer = fabric.setup(self.bare, optimizer)
        self.model.mark_forward_method("losses")
        self.average = WeightAverage(self.bare, config.optim.ema) if config.optim.ema else None
        epoch = data.train.count or 0
        self.rate = LearningRate(config.optim, batch=self.per_step, total=total, epoch=epoch)
        self.images = self.task.dataset(data.train, config)
        measured = data.validation if self.task.measures else None
        self.validation = Cached(measured) if measured is not None else None
        self.spec = input_spec(config, patch=self.bare.patch_size)
        self.step, self.elapsed, self.begun = 0, 0.0, 0.0
        self.measured: dict[str, Any] = {}

    @property
    def seen(self) -> int:
        """Training images so far."""
        return self.step * self.per_step

    def run(self, state: resumption.State | None) -> FitResult:
        """Train to the end."""
        if state is not None:
            self._restore(state)
        main = self.fabric.is_global_zero
        # from here on a signal is answered after a step, with the state saved
        with StopSignal() as self.stop:
            if main:
                self.out.mkdir(parents=True, exist_ok=True)
                self._announce()
                self.journal = Journal(self.out / LOG, seen=self.seen)
            self.progress = Progress(self.total, start=self.seen, every=self.config.run.log_seconds)
            self.begun = time.monotonic() - self.elapsed
            with self.progress if main else nullcontext():
                self._train()
                self._save_state()
                self._finish()
        return FitResult(self.out, self.seen, self.elapsed, self.measured)

    def _train(self) -> None:
        run = self.config.run
        sums: dict[str, torch.Tensor] = {}
        steps = 0
        batches = self._batches()
        self.model.train()
        while self.seen < self.total:
            rate = self.rate.at(self.seen)
            for name, value in self._take_step(batches, rate).items():
                sums[name] = sums[name] + value if name in sums else value
            steps += 1
            ended = self.seen >= self.total
            self.elapsed = time.monotonic() - self.begun
            if self.fabric.is_global_zero and (ended or self.progress.due()):
                self._report(sums, steps, rate)
                sums, steps = {}, 0
            if self.stop.requested:
                self._save_state()
                self._raise_interrupted()
            if not ended and self._passed(run.validate_every):
                self._save_state()
                self._validate(final=False)
                if self.fabric.is_global_zero:
                    # the run can be exported while it goes on
                    self._save_run(final=False)
                self.progress.pause(self.seen)
            elif not ended and self._passed(run.save_every):
                self._save_state()

    def _take_step(self, batches: Iterator[Any], rate: float) -> dict[str, torch.Tensor]:
        """One optimizer step; returns the mean of each loss over the accumulated batches."""
        config, accumulate = self.config, self.config.optim.accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)
        means: dict[str, torch.Tensor] = {}
        for part in range(accumulate):
            batch = next(batches)
            if isinstance(batch, WsssError):
                raise batch
            # stochastic depth draws from the global generator: make it a function of the step. Not any
            # earlier: the loader draws from it too, when its first batch is asked for
            numbers = (_STEP_SEED, config.run.seed, self.step, part, self.fabric.global_rank)
            torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) % 2**63)
            images = normalise(batch[0])
            if config.run.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with self.fabric.no_backward_sync(self.model, enabled=part < accumulate - 1):
                losses = self.model.losses(images, *batch[1:])
                self.fabric.backward(torch.stack(list(losses.values())).sum() / accumulate)
            for name, value in losses.items():
                share = value.detach() / accumulate
                means[name] = means[name] + share if name in means else share
        if config.optim.grad_clip:
            clip = config.optim.grad_clip
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        return means

    def _batches(self) -> Iterator[Any]:
        config, section = self.config, self.config.data
        side = config.model.img_size
        batches = self.total // config.run.batch
        order = BatchOrder(
            self.data.train.count,
            batch=config.run.batch,
            batches=batches,
            seed=config.run.seed,
            sizes=batch_sizes(
                section, side=side, batch=config.run.batch, batches=batches, seed=config.run.seed
            ),
            first=self.step * config.optim.accumulate,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        on_gpu = self.fabric.device.type == "cuda"
        automatic = min(8, max(1, cores() - 1)) if on_gpu else min(2, cores())
        workers = section.workers if section.workers >= 0 else automatic
        loader = build_loader(self.images, order, workers=workers, pin=on_gpu)
        return iter(self.fabric.setup_dataloaders(loader, use_distributed_sampler=False))

    def _passed(self, every: int) -> bool:
        """Whether the last step crossed a multiple of ``every`` images."""
        return bool(every) and self.seen // every > (self.seen - self.per_step) // every

    def _report(self, sums: dict[str, torch.Tensor], steps: int, rate: float) -> None:
        losses = {name: float(value) / steps for name, value in sums.items()}
        if not all(math.isfinite(value) for value in losses.values()):
            raise WsssError(
                f"the loss is not a number after {self.seen} images",
                why=", ".join(f"{name} {value}" for name, value in losses.items()),
                fix="try a lower --lr, more warm-up, --set optim.grad_clip=1.0, or --precision float32",
                code="nonfinite_loss",
            )
        speed = self.progress.report(self.seen, losses, lr=rate)
        rounded = {name: round(value, 6) for name, value in losses.items()}
        self.journal.write(
            {
                "kind": "train",
                "images": self.seen,
                "losses": rounded,
                "lr": rate,
                "images_per_second": round(speed, 2),
            }
        )

    def _validate(self, *, final: bool) -> None:
        if self.validation is not None and self.fabric.is_global_zero:
            # settings for the card are measured in float32; looks on the way may be quick
            autocast = nullcontext if final else self.fabric.autocast
            look = Look(self.spec, final, autocast, self._raise_interrupted)
            started = time.monotonic()
            with self.average.applied() if self.average is not None else nullcontext():
                self.measured = self.task.validate(self.validation, look)
            self._log_validation(time.monotonic() - started)
        self.fabric.barrier()
        self.model.train()

    def _log_validation(self, seconds: float) -> None:
        measured = self.measured
        entry = {"kind": "validation", "images": self.seen, "seconds": round(seconds, 1)}
        named = ("map", "tag_f1", "miou", "background", "miou_predicted", "pixel_accuracy")
        entry |= {name: measured[name] for name in named if name in measured}
        self.journal.write(entry)
        headline, *details = self.task.lines(measured)
        self.progress.say(f"validation after {self.seen} images: {headline}  ({duration(seconds)})")
        for line in details:
            self.progress.say(f"  {line}")
        plot_run(self.out)

    def _finish(self) -> None:
        if self.validation is not None and self.fabric.is_global_zero:
            self.progress.say(f"measuring on {self.validation.count} images in float32")
        self._validate(final=True)
        if self.fabric.is_global_zero:
            self._save_run(final=True)
            plot_run(self.out)
            resumption.remove_state(self.out)

    def _save_run(self, *, final: bool) -> None:
        where = validation_name(self.data)
        recommended, options = self.task.recommend(self.measured, data=where, final=final)
        record = run_config(
            self.config,
            self.data,
            spec=self.spec,
            seen=self.seen,
            seconds=self.elapsed,
            device=self.fabric.device,
            measured=self.measured,
            recommended=recommended,
            options=options,
        )
        save_run(self.out, self.average.average if self.average is not None else self.bare, record)

    def _save_state(self) -> None:
        if self.fabric.is_global_zero:
            state = resumption.State(
                config=self.config.to_dict(),
                fingerprint=self.data.fingerprint,
                step=self.step,
                seconds=self.elapsed,
                model=dict(self.bare.state_dict()),
                average=self.average.average if self.average is not None else None,
                optimizer=self.optimizer.state_dict(),
            )
            resumption.write_state(self.out, state)
        self.fabric.barrier()

    def _restore(self, state: resumption.State) -> None:
        self.bare.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if self.average is not None and state.average is not None:
            self.average.load(state.average)
        self.step, self.elapsed = state.step, state.seconds

    def _raise_interrupted(self) -> None:
        """End if a signal asked for it; call where the state is saved."""
        if self.stop.requested:
            raise Interrupted(self.stop.number, self.out, self.seen, self.total)

    def _announce(self) -> None:
        config = self.config
        parameters = sum(parameter.numel() for parameter in self.bare.parameters()) / 1e6
        precision = resolve_precision(config.run.precision)
        self.say(f"{config.method} on {config.model.backbone}: {parameters:.2f} M parameters, {precision}")
        if self.step:
            self.say(f"continuing from the saved state at image {self.seen} of {self.total}")
