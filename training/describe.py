"""What a run folder says of the run: settings, data, measured quality, versions, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wsss_rt import __version__
from wsss_rt.model_card import InputSpec, Recommended
from wsss_rt.training.checkpoints import RunConfig
from wsss_rt.training.config import TrainConfig
from wsss_rt.training.data.build import TrainingData
from wsss_rt.training.setup import model_arguments, resolve_precision


def run_config(
    config: TrainConfig,
    data: TrainingData,
    *,
    spec: InputSpec,
    seen: int,
    seconds: float,
    device: torch.device,
    measured: Mapping[str, Any],
    recommended: Recommended,
    options: dict[str, Any],
) -> RunConfig:
    """The record of a finished run.

    Args:
        config, data: of the run.
        spec: the card's input policy.
        seen: training images.
        seconds: time in the loop.
        device: that it ran on.
        measured: last validation; empty without one.
        recommended, options: of :func:`~wsss_rt.training.validation.recommend`.
    """
    # the weights are ours now: whoever loads the run needs neither a download nor a first stage
    arguments = {**model_arguments(config), "pretrained": False}
    arguments.pop("first_stage", None)
    kept = {key: value for key, value in measured.items() if key not in ("curve", "thresholds")}
    quality = {"validation": {"data": validation_name(data), **kept}} if kept else {}
    return RunConfig(
        method=config.method,
        classes=data.classes.names,
        model=arguments,
        input=spec,
        training={
            **data.facts,
            "fingerprint": data.fingerprint,
            "images_seen": seen,
            "seconds": round(seconds, 1),
            "config": config.to_dict(),
            "precision": str(resolve_precision(config.run.precision)),
            "averaged_weights": config.optim.ema > 0,
            "versions": versions(),
            "machine": machine(device),
        },
        quality=quality,
        recommended=recommended,
        recommended_options=options,
    )


def input_spec(config: TrainConfig, *, patch: int) -> InputSpec:
    """How images are sized when the trained model labels them; validation uses the same."""
    section = config.data
    size = None if section.size_policy == "native" else section.input_size or config.model.img_size
    window = section.window or None
    return InputSpec(
        patch=patch,
        size_policy=section.size_policy,  # type: ignore[arg-type]
        size=size,
        window=window,
        stride=(section.stride or max(1, window * 2 // 3)) if window else None,
    )


def validation_name(data: TrainingData) -> str:
    """What validation was measured on, in words."""
    if "validation_seed" in data.facts:
        return f"validation scenes (seed {data.facts['validation_seed']})"
    if "masks" in data.facts:
        return "images held out of the training folder, against the masks that it learned from"
    split = data.facts.get("validation_split")
    return f"the split {split} of the training tree" if split else "images held out of the training folder"


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    names = ("torch", "timm", "lightning", "torchvision", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"wsss-rt": __version__, "python": platform.python_version(), **found}


def machine(device: torch.device) -> str:
    """GPU, or processor and number of cores, for records of time."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    return f"{model}, {cores()} cores"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
