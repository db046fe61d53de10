"""What is settled before the first step: length, precision, devices, and whether the model can exist."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric import Fabric

from wsss_rt.errors import UsageError, nearest
from wsss_rt.kernels.proof import ensure_proof, subjects
from wsss_rt.training.config import Precision, TrainConfig
from wsss_rt.training.data.build import SCENES, TrainingData

if TYPE_CHECKING:
    from wsss_rt.training.models import Method

_DTYPES = {
    Precision.FLOAT32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
}
_PRECISIONS = {Precision.FLOAT32: "32-true", Precision.BF16: "bf16-mixed", Precision.FP16: "16-mixed"}


def check_model(config: TrainConfig) -> None:
    """Refuse what ``create_model`` would refuse, before the data are looked at.

    Raises:
        UsageError: unknown method, method option or backbone; the nearest name is given.
    """
    import timm

    from wsss_rt.training.data.joint import check_joint
    from wsss_rt.training.models import METHODS, SEGMENTERS, method_options

    if config.method not in METHODS:
        raise UsageError(f"unknown method {config.method!r}", fix=nearest(config.method, METHODS))
    known = {*method_options(config.method), "drop_path"}
    for name in config.model.options:
        if name not in known:
            raise UsageError(f"{config.method} has no option {name!r}", fix=nearest(name, known))
    if not timm.is_model(config.model.backbone):
        choices = [*timm.list_models("*vit*"), *timm.list_models("deit*")]
        raise UsageError(
            f"unknown backbone {config.model.backbone!r}", fix=nearest(config.model.backbone, choices)
        )
    wanted_planes(config)
    segments = config.method in SEGMENTERS
    if segments and config.data.source != SCENES and not config.data.masks:
        raise UsageError(
            f"{config.method} learns from masks",
            fix="add --masks OUT/masks, as `wsss-rt label` wrote them for --data",
        )
    if not segments and config.data.masks:
        raise UsageError(
            f"{config.method} does not learn from --masks",
            fix=f"leave it out, or train {', '.join(sorted(SEGMENTERS))}",
        )
    if segments:
        check_joint(config.data.augment)
    second = config.model.options.get("stage") == "cam"
    if second != bool(config.model.first_stage):
        raise UsageError(
            "the second stage starts from a first"
            if second
            else "model.first_stage is for stage 'cam' alone",
            fix="train one with stage 'tpsm', then --set model.first_stage=RUN/weights.safetensors"
            if second
            else "leave it out, or --set model.options.stage=cam",
        )
    if config.model.pretrained and config.model.pretrained_file:
        raise UsageError("model.pretrained and model.pretrained_file exclude each other")


def wanted_planes(config: TrainConfig) -> tuple[str, ...]:
    """The planes beside images and tags that a run learns from, in the order in which its model wants them.

    Raises:
        UsageError: the method needs a folder that is not given, or has no use for one that is.
    """
    from wsss_rt.training.data.planes import PLANES
    from wsss_rt.training.models import METHODS

    method = METHODS[config.method]
    usable = (*method.needed_planes, *method.optional_planes)
    given = [name for name in PLANES if getattr(config.data, name)]
    for name in method.needed_planes:
        if name not in given:
            flag = name.replace("_", "-")
            raise UsageError(
                f"{config.method} needs --{flag}",
                why="it learns from masks that a CRF refined with a low and a high power of background",
                fix="write both: wsss-rt label IMAGES --refine crf --crf-alpha 4 --out la, and 32 for ha",
            )
    for name in given:
        if name not in usable:
            raise UsageError(f"{config.method} has no use for data.{name}", fix="leave it out")
    return tuple(name for name in usable if name in given)


def new_model(config: TrainConfig, *, num_classes: int) -> Method:
    """The model of a run before its first step, with the first stage's weights where there is one.

    Raises:
        UsageError: what ``create_model`` refuses, or a method without stages.
        WsssError: weights that cannot be had or do not fit.
    """
    from wsss_rt.training.checkpoints import read_state_dict
    from wsss_rt.training.models import create_model
    from wsss_rt.training.models.token_refinement import TokenRefinement

    arguments = model_arguments(config)
    first_stage = arguments.pop("first_stage", "")
    model = create_model(config.method, num_classes=num_classes, **arguments)
    if first_stage:
        if not isinstance(model, TokenRefinement):
            raise UsageError(f"{config.method} has no stages", fix="leave out model.first_stage")
        model.load_first_stage(read_state_dict(Path(first_stage)))
    return model


def model_arguments(config: TrainConfig) -> dict[str, Any]:
    """Keyword arguments of ``create_model`` beside the number of classes.

    A ``first_stage`` among them is for :func:`new_model` alone: ``create_model`` refuses it rather than begin
    without it.
    """
    from wsss_rt.training.models import SEGMENTERS

    section = config.model
    first_stage = {"first_stage": section.first_stage} if section.first_stage else {}
    # masks that `label` wrote, and scenes, have a background; official checkpoints need not
    background = {"background": True} if config.method in SEGMENTERS else {}
    return {
        **first_stage,
        **background,
        "backbone": section.backbone,
        "img_size": section.img_size,
        "pretrained": section.pretrained_file or section.pretrained,
        **section.options,
    }


def planned_images(config: TrainConfig, data: TrainingData) -> int:
    """Training images of the whole run, a multiple of the images per optimizer step.

    Raises:
        UsageError: no length given, or epochs of endless data.
    """
    run, count = config.run, data.train.count
    per_step = run.batch * config.optim.accumulate
    images = run.images
    if not images and run.epochs:
        if count is None:
            raise UsageError("scenes have no epochs, they never end", fix="give --images N")
        images = math.ceil(run.epochs * count)
    if images <= 0:
        raise UsageError("how long to train is not set", fix="give --images N or --epochs N")
    return math.ceil(images / per_step) * per_step


def resolve_precision(precision: Precision) -> Precision:
    """What ``auto`` means here: bf16 where the hardware has it, float16 on older GPUs, else float32."""
    if precision is not Precision.AUTO:
        return precision
    if torch.cuda.is_available():
        return Precision.BF16 if torch.cuda.is_bf16_supported(including_emulation=False) else Precision.FP16
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        if getattr(torch.cpu, probe, lambda: False)():
            return Precision.BF16
    return Precision.FLOAT32


def open_fabric(config: TrainConfig) -> Fabric:
    """Fabric on the devices that the run asks for; not launched yet.

    Raises:
        UsageError: ``devices`` is neither ``auto`` nor a number.
    """
    run = config.run
    devices: str | int = run.devices
    if run.devices != "auto":
        if not run.devices.isdigit() or not int(run.devices):
            raise UsageError(f"run.devices = {run.devices!r}", fix="give 'auto' or a number")
        devices = int(run.devices)
    elif run.accelerator == "cpu" or not torch.cuda.is_available():
        # a processor is one device: torch spreads its work over the cores by itself
        devices = 1
    # its notices about precision and devices repeat what we announce ourselves
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    precision: Any = _PRECISIONS[resolve_precision(run.precision)]
    return Fabric(accelerator=run.accelerator, devices=devices, precision=precision)


def prove_kernels(
    model: Method, device: torch.device, precision: Precision, say: Callable[[str], None]
) -> None:
    """Let a GPU prove the kernels that a model runs, once, before the first step; nothing off a GPU.

    Validation runs them all, on the way in the run's precision and in the end in float32; training itself
    only those that need no gradient.
    """
    dtypes = dict.fromkeys((_DTYPES[resolve_precision(precision)], torch.float32))
    ensure_proof(device, subjects(model.operators, dtypes), tell=say)
