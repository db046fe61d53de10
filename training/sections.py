"""What a training run can be told: the sections of its configuration, their keys, defaults and choices."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

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
    on CUB; ``scale-pad`` is ACR's; ``scale-crop`` is mmsegmentation's, for images with masks; ``short-crop``
    is L2G's and ``pad-crop`` is PSA's.
    """

    NONE = "none"
    FLIP = "flip"
    COLOR = "color"
    LIGHT = "light"
    OFFICIAL = "official"
    SQUASH_CROP = "squash-crop"
    SCALE_PAD = "scale-pad"
    SCALE_CROP = "scale-crop"
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
        pretrained_file: start from the backbone's state dict in this file, or from the backbone of this run
            folder.
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
        masks: for segmenters: an output folder of `label`, or a folder of PNGs; 255 in them is unknown.
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
        window: for segmenters: side of the windows that slide over larger inputs when labelling; 0 runs them
            whole.
        stride: between windows, pixels; 0 means two thirds of ``window``.
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
    masks: str = ""
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
    window: int = 0
    stride: int = 0
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
        head_lr_factor: how much faster the head of a segmenter, L2G or PSA learns than its backbone (the
            literature: 10).
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
    head_lr_factor: float = 1.0
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
