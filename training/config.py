"""Configuration of a training run: frozen dataclasses, filled from defaults, a TOML recipe and flags."""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any

from wsss_rt.errors import UsageError, nearest

SIZE_ORDERS = ("random", "growing")


class Layout(StrEnum):
    """How a folder holds images and tags; ``auto`` takes the data set that it looks like."""

    AUTO = "auto"
    VOC = "voc"
    COCO = "coco"
    CUB = "cub"
    ILSVRC = "ilsvrc"
    FOLDER = "folder"


class Augment(StrEnum):
    """What happens to a training image.

    ``official`` is timm's (MCTformer, and token refinement on ILSVRC); ``squash-crop`` is token refinement's
    on CUB; ``scale-pad`` is ACR's; ``short-crop`` is L2G's and ``pad-crop`` is PSA's.
    """

    NONE = "none"
    FLIP = "flip"
    COLOR = "color"
    LIGHT = "light"
    OFFICIAL = "official"
    SQUASH_CROP = "squash-crop"
    SCALE_PAD = "scale-pad"
    SHORT_CROP = "short-crop"
    PAD_CROP = "pad-crop"


class Precision(StrEnum):
    """Arithmetic of the loop; ``auto`` takes bf16-mixed where the hardware multiplies bf16."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BF16 = "bf16-mixed"
    FP16 = "16-mixed"


class Schedule(StrEnum):
    """Learning rate over time."""

    COSINE = "cosine"
    CONSTANT = "constant"
    POLY = "poly"
    STEPS = "steps"
    # token refinement's code drops the rate at every multiple of its steps, too
    STEP_MULTIPLES = "step-multiples"


class Optimizer(StrEnum):
    """What moves the weights.

    ``sgd-decay-as-momentum`` is what ACR's (and PSA's) code does by accident: weight decay is passed where
    SGD expects its momentum, so that it is the momentum and nothing decays.
    """

    ADAMW = "adamw"
    SGD = "sgd"
    SGD_DECAY_AS_MOMENTUM = "sgd-decay-as-momentum"


class LrUpdate(StrEnum):
    """When the learning rate moves; the official code moves it after each epoch, one epoch late."""

    STEP = "step"
    EPOCH_LAGGED = "epoch-lagged"


@dataclass(frozen=True)
class ModelSection:
    """What is trained.

    Attributes:
        backbone: name in timm's registry; methods on a ResNet-38d start from that one.
        img_size: side of the training images in pixels.
        pretrained: start from weights that timm downloads.
        pretrained_file: start from the backbone's state dict in this file.
        first_stage: weights of the first stage, for methods that are trained in two (token refinement).
        options: further keyword arguments of ``create_model``.
    """

    backbone: str = "deit_small_patch16_224"
    img_size: int = 224
    pretrained: bool = False
    pretrained_file: str = ""
    first_stage: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSection:
    """Where images and tags come from, and what happens to them.

    Attributes:
        source: a folder, or ``scenes``.
        layout: see :class:`Layout`.
        tags: tag file or folder, ``voc``, ``folders``; empty looks for labels.csv or a VOC tree.
        classes: ``voc``, ``coco``, ``scenes`` or a file; empty takes the names that the tags use.
        split: list of the data set to train on; empty takes its training list (VOC: train_aug, or train).
        val_split: list of the data set to validate on; empty takes its validation or test list, and where
            there is none holds images out of the training ones.
        val_images: how many images validation uses at most; 0 switches it off.
        augment: see :class:`Augment`.
        crop_scale: share of the image's area that a random crop keeps, for ``light``, ``official`` and
            ``squash-crop``.
        sizes: [height, width] pairs that batches take; empty means square.
        size_order: ``random``: each batch takes any of ``sizes``; ``growing``: the run is shared out between
            them, in the order in which they stand.
        close_ups: as many images at the beginning of a run on scenes show a single large object.
        close_up_size: their side, pixels; 0 means ``img_size``.
        size_policy: how the trained model's inputs are sized when labelling: native, short_side, fixed.
        input_size: pixels for ``short_side`` and ``fixed``; 0 means ``img_size``.
        saliency: folder of 8-bit grey PNGs, one for each image and of its size, for methods that use them.
        low_alpha, high_alpha: output folders of ``label``, refined by a CRF whose background has a low and a
            high power; what an affinity net learns from.
        val_seed: seed of validation scenes.
        workers: loader processes; -1 picks by the number of cores.
        check: decode every image once before training starts.
    """

    source: str = ""
    layout: Layout = Layout.AUTO
    tags: str = ""
    classes: str = ""
    split: str = ""
    val_split: str = ""
    val_images: int = 200
    augment: Augment = Augment.LIGHT
    crop_scale: list[float] = field(default_factory=lambda: [0.4, 1.0])
    sizes: list[list[int]] = field(default_factory=list)
    size_order: str = "random"
    close_ups: int = 0
    close_up_size: int = 0
    size_policy: str = "native"
    input_size: int = 0
    saliency: str = ""
    low_alpha: str = ""
    high_alpha: str = ""
    val_seed: int = 990_001
    workers: int = -1
    check: bool = True


@dataclass(frozen=True)
class OptimSection:
    """How weights move.

    Attributes:
        optimizer: see :class:`Optimizer`.
        lr: learning rate, for a batch of ``lr_batch`` images.
        lr_batch: batch for which ``lr`` is meant (linear scaling); 0 takes ``lr`` as it is.
        min_lr: where the schedule ends.
        warmup_lr: where the warm-up begins.
        warmup_images: length of the linear warm-up.
        warmup_epochs: the same in epochs; for finite data only.
        weight_decay: not applied to biases, 1-D parameters, tokens and position embeddings.
        decay_positions: let it touch position tables that have a name of their own, as MCTformer+'s code does
            by accident.
        betas: of Adam.
        momentum: of SGD.
        nesterov: look ahead along it.
        schedule: see :class:`Schedule`. ``poly`` falls to ``min_lr`` as (1 - progress) to the power of
            ``poly_power``; ``steps`` multiplies the rate by ``step_factor`` when an epoch of ``step_epochs``
            (counted from 1) begins, for finite data only.
        poly_power: exponent of ``poly``.
        step_epochs: when the rate drops.
        step_factor: to how much of it, 0..1.
        lr_update: see :class:`LrUpdate`.
        grad_clip: largest norm of the gradient; 0 leaves it alone.
        accumulate: batches per optimizer step.
        ema: decay of an average of the weights, which is then what gets saved; 0 saves the weights.
    """

    optimizer: Optimizer = Optimizer.ADAMW
    lr: float = 5e-4
    lr_batch: int = 0
    min_lr: float = 1e-6
    warmup_lr: float = 1e-6
    warmup_images: int = 0
    warmup_epochs: float = 0.0
    weight_decay: float = 0.05
    decay_positions: bool = False
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    momentum: float = 0.0
    nesterov: bool = False
    schedule: Schedule = Schedule.COSINE
    poly_power: float = 0.9
    step_epochs: list[int] = field(default_factory=list)
    step_factor: float = 0.1
    lr_update: LrUpdate = LrUpdate.STEP
    grad_clip: float = 0.0
    accumulate: int = 1
    ema: float = 0.0


@dataclass(frozen=True)
class RunSection:
    """How long, on what, and how often to look.

    Attributes:
        images: training images to see in all; 0 uses ``epochs``.
        epochs: passes over the data; for finite data only.
        batch: images per step, over all devices.
        seed: decides initial weights, data order and augmentation.
        precision: see :class:`Precision`.
        devices: ``auto`` or a number.
        accelerator: ``auto``, ``cpu``, ``cuda``.
        compile: run the model through torch.compile.
        channels_last: memory format of the images.
        validate_every: training images between validations; 0 validates at the end only.
        save_every: training images between saved states; 0 saves when validating and at the end.
        log_seconds: time between progress lines.
    """

    images: int = 0
    epochs: float = 0.0
    batch: int = 64
    seed: int = 0
    precision: Precision = Precision.AUTO
    devices: str = "auto"
    accelerator: str = "auto"
    compile: bool = False
    channels_last: bool = False
    validate_every: int = 0
    save_every: int = 0
    log_seconds: float = 20.0


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Attributes:
        method: name as in ``create_model``.
        recipe: where the settings came from.
        model, data, optim, run: see the sections.
    """

    method: str
    recipe: str = ""
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    optim: OptimSection = field(default_factory=OptimSection)
    run: RunSection = field(default_factory=RunSection)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and TOML know them."""
        raw: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return raw


_RESNET38 = ModelSection(backbone="resnet38d", img_size=448)
#: Sections whose defaults are not the usual ones, by method.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "l2g": {"model": _RESNET38, "data": DataSection(augment=Augment.SHORT_CROP)},
    "psa": {"model": _RESNET38, "data": DataSection(augment=Augment.PAD_CROP, val_images=0)},
}
SECTIONS = {"model": ModelSection, "data": DataSection, "optim": OptimSection, "run": RunSection}
# these may change between a run and its continuation; what is trained on is compared by its fingerprint
_FREE_KEYS = {
    ("recipe",), ("data", "source"), ("data", "layout"), ("data", "tags"), ("data", "classes"),
    ("data", "saliency"), ("data", "low_alpha"), ("data", "high_alpha"),
    ("data", "workers"), ("data", "check"), ("run", "log_seconds"), ("run", "save_every"),
    ("run", "validate_every"), ("run", "devices"),
}  # fmt: skip


def build_config(
    method: str, *, recipe: str | Path | None = None, flags: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Defaults, overlaid by a recipe, overlaid by flags.

    Args:
        method: name as in ``create_model``.
        recipe: name of a recipe in the package, or a TOML file.
        flags: dotted key (``optim.lr``) to value; None values are skipped.

    Raises:
        UsageError: unknown recipe, section or key (the nearest one is named), a value of the wrong type, or
            a recipe for other methods.
    """
    config = TrainConfig(method=method, **METHOD_DEFAULTS.get(method, {}))
    if recipe is not None:
        name, raw = read_recipe(recipe)
        methods = raw.pop("methods", [method])
        if method not in methods:
            raise UsageError(
                f"the recipe {name} is not for {method}", fix=f"it is for {' and '.join(map(str, methods))}"
            )
        config = replace(config, recipe=name)
        for section, values in raw.items():
            if not isinstance(values, Mapping):
                raise UsageError(
                    f"{name}: {section!r} stands outside a section", fix=nearest(section, SECTIONS)
                )
            for key, value in values.items():
                config = _with(config, f"{section}.{key}", value, where=name)
    for dotted, value in (flags or {}).items():
        if value is not None:
            config = _with(config, dotted, value, where="the command line")
    return _checked(config)


def read_recipe(recipe: str | Path) -> tuple[str, dict[str, Any]]:
    """A recipe's name and raw content; a top-level ``description`` is left out.

    A top-level ``methods`` lists the methods that it is for; without it, it is for any.

    Raises:
        UsageError: no such recipe, or not TOML.
    """
    path = Path(recipe)
    if path.suffix == ".toml" or path.is_file():
        name = path.name
        if not path.is_file():
            raise UsageError(f"no recipe file {path}", fix=nearest(path.stem, recipe_names()))
        text = path.read_text(encoding="utf-8")
    else:
        name = str(recipe)
        if name not in recipe_names():
            raise UsageError(f"no recipe named {name!r}", fix=nearest(name, recipe_names()))
        text = (
            resources.files("wsss_rt.training.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8")
        )
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the recipe {name} is not valid TOML", why=str(error)) from error
    raw.pop("description", None)
    return name, raw


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("wsss_rt.training.recipes")
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """``section.key=value`` pairs; values are TOML, or text where they are not.

    Raises:
        UsageError: no ``=``.
    """
    parsed = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            raise UsageError(f"--set {setting!r} has no '='", fix="write it as --set optim.lr=0.001")
        try:
            parsed[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[key.strip()] = text.strip()
    return parsed


def to_toml(config: TrainConfig) -> str:
    """The configuration as a recipe that ``--recipe`` takes back."""
    raw = config.to_dict()
    lines = [f"# wsss-rt train {config.method}" + (f", from {config.recipe}" if config.recipe else "")]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        tables = {key: value for key, value in raw[section].items() if isinstance(value, dict)}
        lines += [f"{key} = {json.dumps(value)}" for key, value in raw[section].items() if key not in tables]
        for table, values in tables.items():
            if values:
                lines += ["", f"[{section}.{table}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
    return "\n".join(lines) + "\n"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What keeps a saved state from being continued: ``section.key: old -> new``.

    A key that the old state does not know, because it is older than the key, had the default.
    """
    found = []
    defaults = TrainConfig(method="").to_dict()
    for section in {**old, **new}:
        first, second = old.get(section), new.get(section)
        if isinstance(first, dict) and isinstance(second, dict):
            first = {**defaults.get(section, {}), **first}
            found += [
                f"{section}.{key}: {first.get(key)} -> {second.get(key)}"
                for key in {**first, **second}
                if first.get(key) != second.get(key) and (section, key) not in _FREE_KEYS
            ]
        elif first != second and (section,) not in _FREE_KEYS:
            found.append(f"{section}: {first} -> {second}")
    return found


def _with(config: TrainConfig, dotted: str, value: Any, *, where: str) -> TrainConfig:
    section, _, key = dotted.partition(".")
    if section not in SECTIONS:
        raise UsageError(
            f"{where}: unknown section {section!r} in {dotted!r}", fix=nearest(section, SECTIONS)
        )
    current = getattr(config, section)
    if section == "model" and key.startswith("options."):
        options = {**current.options, key.removeprefix("options."): value}
        return replace(config, model=replace(current, options=options))
    names = [item.name for item in fields(current)]
    if key not in names:
        raise UsageError(f"{where}: unknown key {dotted!r}", fix=nearest(key, names))
    wanted = typing.get_type_hints(type(current))[key]
    return replace(config, **{section: replace(current, **{key: _typed(value, wanted, dotted, where)})})


def _typed(value: Any, wanted: Any, dotted: str, where: str) -> Any:
    origin = typing.get_origin(wanted) or wanted
    if isinstance(origin, type) and issubclass(origin, StrEnum):
        choices = [item.value for item in origin]
        if str(value) not in choices:
            raise UsageError(
                f"{where}: {dotted} = {value!r} is not a choice", fix=nearest(str(value), choices)
            )
        return origin(str(value))
    if origin is str and isinstance(value, (Path, int)) and not isinstance(value, bool):
        return str(value)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is int and isinstance(value, bool) or not isinstance(value, origin):
        raise UsageError(
            f"{where}: {dotted} = {value!r} is a {type(value).__name__}", fix=f"give a {origin.__name__}"
        )
    return dict(value) if origin is dict else list(value) if origin is list else value


def _checked(config: TrainConfig) -> TrainConfig:
    positive = {
        "model.img_size": config.model.img_size, "run.batch": config.run.batch,
        "optim.lr": config.optim.lr, "optim.accumulate": config.optim.accumulate,
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
    if config.data.close_ups < 0 or config.data.close_up_size < 0:
        raise UsageError("data.close_ups and data.close_up_size must not be negative")
    return config


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
