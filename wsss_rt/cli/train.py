"""``wsss-rt train``: from images and tags, or masks, to a run folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsss_rt.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from wsss_rt.training.config import TrainConfig


def train(
    method: Annotated[str, typer.Argument(help="Method, e.g. mctformer-v2.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder of images; a VOC, COCO, CUB or ILSVRC tree; or the word 'scenes'.",
            show_default=False,
        ),
    ] = None,
    tags: Annotated[
        str | None,
        typer.Option(
            help="CSV, JSON, cls_labels.npy, VOC XML; 'folders' (parent's name); 'voc', 'masks' (VOC tree).",
            show_default="labels.csv in the folder",
        ),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            help="For segmenters: an output folder of `wsss-rt label`, or a folder of PNGs.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="'voc', 'coco', 'scenes' or a file of names.", show_default="the names in the tags"
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="List of the data set to train on.", show_default="its training list")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Name of a recipe, or a TOML file; flags win over it.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/METHOD")] = None,
    backbone: Annotated[str | None, typer.Option(help="A ViT or DeiT of timm.", show_default=False)] = None,
    pretrained: Annotated[
        bool | None, typer.Option("--pretrained/--no-pretrained", help="Start from timm's weights.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|RUN",
            help="Start from this state dict of the backbone, or from the backbone of this run.",
            show_default=False,
        ),
    ] = None,
    saliency: Annotated[
        Path | None,
        typer.Option(help="Grey PNGs, one per image, for l2g.", show_default="none"),
    ] = None,
    low_alpha: Annotated[
        Path | None,
        typer.Option(help="For psa: output of `label --refine crf --crf-alpha 4`.", show_default=False),
    ] = None,
    high_alpha: Annotated[
        Path | None, typer.Option(help="For psa: the same with --crf-alpha 32.", show_default=False)
    ] = None,
    img_size: Annotated[int | None, typer.Option(help="Side of training images, pixels.", min=16)] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.", min=0)] = None,
    images: Annotated[int | None, typer.Option(help="Training images in all.", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step.", min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", min=0.0)] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and augmentation.", min=0)] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bf16-mixed or 16-mixed.")] = None,
    devices: Annotated[str | None, typer.Option(help="'auto' or a number.")] = None,
    workers: Annotated[int | None, typer.Option(help="Loader processes.", min=0)] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue the run in --out, or start over.")
    ] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of a recipe, e.g. optim.ema=0.999."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings as a recipe, and end.")
    ] = False,
) -> None:
    """Train a localizer from images and tags, a segmenter from images and masks, or an affinity net (psa)
    from two sets of masks.

    \b
    Examples:
      wsss-rt train mctformer-v2 --data scenes --recipe scenes-small --out runs/scenes
      wsss-rt train mctformer-v2 --data photos --tags tags.csv --recipe folder-small --out runs/mine
      wsss-rt train mctformer-v2 --data VOC2012 --recipe voc-official --pretrained --out runs/voc
      wsss-rt train segvit --data photos --masks labels --recipe segmenter-small --out runs/student
      wsss-rt train psa --data photos --low-alpha la --high-alpha ha --epochs 5 --out runs/psa

    Precedence: flag, then --set, then the recipe, then the default. Ctrl-C saves; the same command continues.
    """
    _require_torch()
    from wsss_rt.training.config import build_config, parse_settings, to_toml

    flags: dict[str, Any] = parse_settings(set_ or [])
    named = {
        "data.source": data, "data.tags": tags, "data.masks": masks, "data.classes": classes,
        "data.split": split,
        "data.workers": workers, "model.backbone": backbone, "model.pretrained": pretrained,
        "model.pretrained_file": weights,
        "data.saliency": saliency, "data.low_alpha": low_alpha, "data.high_alpha": high_alpha,
        "model.img_size": img_size, "run.batch": batch, "run.seed": seed, "run.precision": precision,
        "run.devices": devices, "optim.lr": lr,
    }  # fmt: skip
    flags.update({key: value for key, value in named.items() if value is not None})
    if epochs is not None and images is not None:
        raise UsageError("--epochs and --images exclude each other")
    if epochs is not None:
        flags |= {"run.epochs": epochs, "run.images": 0}
    if images is not None:
        flags |= {"run.images": images, "run.epochs": 0.0}
    config = build_config(method, recipe=recipe, flags=flags)
    if print_config:
        typer.echo(to_toml(config), nl=False)
        return
    _run(config, out or Path("runs") / method, resume=resume)


def _run(config: TrainConfig, out: Path, *, resume: bool) -> None:
    from wsss_rt.training.data.build import build_data
    from wsss_rt.training.fit import fit
    from wsss_rt.training.journal import duration
    from wsss_rt.training.process import prepare_process
    from wsss_rt.training.resume import is_finished, remove_state
    from wsss_rt.training.setup import check_model, planned_images

    check_model(config)
    data = build_data(config.data, seed=config.run.seed, progress=_say)
    for message in data.messages:
        _say(message)
    planned_images(config, data)
    if not resume:
        remove_state(out)
    elif is_finished(out, config, data.fingerprint):
        _say(f"{out} holds this run, complete; --no-resume trains it again")
        return
    prepare_process()
    result = fit(config, data, out, resume=resume, say=_say)
    _say(f"trained on {result.images} images in {duration(result.seconds)}; the run is in {out}")
    _say(f"next: wsss-rt export {out} --to onnx --out {out / 'model.onnx'}")


def _require_torch() -> None:
    for package in ("torch", "torchvision", "timm", "lightning", "safetensors"):
        # asking is enough here: importing torch takes seconds, which --print-config need not wait for
        try:
            found = importlib.util.find_spec(package) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            raise MissingExtraError("wsss-rt train", extra="train", package=package)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
