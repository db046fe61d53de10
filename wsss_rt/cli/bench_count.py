"""``wsss-rt bench``: what models cost."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsss_rt.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from wsss_rt.training.cost import Cost

_PACKAGES = ("torch", "timm")
_DEFAULT_CLASSES = 20


def bench(
    count: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Count multiply-accumulates of a method, a run folder or a model file; several.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Image, pixels. [default: the model's training size, square]"),
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Of a method by its name. [default: 20]")] = None,
    backbone: Annotated[str | None, typer.Option(help="Of a method by its name: a ViT of timm.")] = None,
    img_size: Annotated[
        int | None, typer.Option(min=16, help="Of a method by its name: side of training images, pixels.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Of a method by its name, e.g. shrink_at=8."),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Show every layer.")] = True,
    time_: Annotated[
        int,
        typer.Option("--time", metavar="RUNS", min=0, help="Also time so many passes of each in PyTorch."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Count what a pass of one image costs, layer by layer.

    Multiply-accumulates by fvcore's rules, which are the "GFLOPs" of most vision papers. Counting needs
    neither weights nor memory. With several models, the second column of the summary is against the first.

    \b
    Examples:
      wsss-rt bench --count runs/mine
      wsss-rt bench --count mctformer-v2 --size 500x375
      wsss-rt bench --count segvit --count segvit-shrunk --backbone vit_large_patch16_224 --img-size 640
          --classes 150 --no-layers
    """
    if not count:
        raise UsageError("nothing to do", fix="name a model: --count segvit, --count runs/mine")
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("wsss-rt bench", extra="train", package=package)
    wanted = None if size is None else _parse_size(size)
    given = {"backbone": backbone, "img_size": img_size, "classes": classes, **_parse(set_ or [])}
    given = {key: value for key, value in given.items() if value is not None}

    from wsss_rt.training.cost import count as count_pass
    from wsss_rt.training.cost import meta_model

    specs = [_describe(name, given) for name in count]
    costs: list[Cost] = []
    for method, num_classes, arguments in specs:
        model: Any = meta_model(method, num_classes=num_classes, **arguments)
        costs.append(count_pass(model, wanted or (model.img_size, model.img_size)))
    seconds: list[float | None] = _time(specs, costs, time_) if time_ else [None] * len(costs)
    if as_json:
        print(
            json.dumps([_as_dict(*row) for row in zip(count, specs, costs, seconds, strict=True)], indent=2)
        )
        return
    if layers:
        for name, cost in zip(count, costs, strict=True):
            _show_layers(name, cost)
    _show_summary(count, costs, seconds)


Spec = tuple[str, int, dict[str, Any]]


def _describe(name: str, given: dict[str, Any]) -> Spec:
    """Method, number of classes and arguments of ``create_model``."""
    path = Path(name)
    if not path.exists():
        from wsss_rt.training.models import METHODS

        if path.suffix == ".onnx" or "/" in name:
            raise UsageError(
                f"no run or model at {name}", fix="give a method's name, a run folder or a model file"
            )
        from wsss_rt.errors import nearest

        if name not in METHODS:
            raise UsageError(f"no method, run or model {name!r}", fix=nearest(name, METHODS))
        arguments = dict(given)
        return name, arguments.pop("classes", _DEFAULT_CLASSES), arguments
    if given:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        raise UsageError(f"{flags} only goes with a method's name", why=f"{name} says this itself")
    if path.is_dir():
        from wsss_rt.training.checkpoints import read_config

        config = read_config(path)
        return config.method, len(config.classes), {**config.model, **config.recommended_options}
    from wsss_rt.model_card import read_card

    card = read_card(path)
    # how the file stores its weights is no option of the model
    options = {key: value for key, value in card.options.items() if key != "weights"}
    return card.method, len(card.classes), options


def _time(specs: list[Spec], costs: list[Cost], runs: int) -> list[float | None]:
    from wsss_rt.training.cost import measure
    from wsss_rt.training.models import create_model

    sizes = {cost.size for cost in costs}
    if len(sizes) > 1:
        raise UsageError("models of several training sizes are timed on one image", fix="add --size HxW")
    models = [
        create_model(method, num_classes=number, **{**arguments, "pretrained": False}).eval()
        for method, number, arguments in specs
    ]
    return [*measure(models, sizes.pop(), runs=runs)]


def _as_dict(name: str, spec: Spec, cost: Cost, seconds: float | None) -> dict[str, Any]:
    return {
        "model": name,
        "method": spec[0],
        "classes": spec[1],
        "size": list(cost.size),
        "macs": cost.total,
        "parameters": cost.parameters,
        "kinds": dict(cost.kinds),
        "layers": dict(cost.layers),
        "seconds": seconds,
    }


def _show_layers(name: str, cost: Cost) -> None:
    from wsss_rt.tables import percent, print_table

    rows = [[layer, f"{macs / 1e9:.4f}", percent(macs / cost.total)] for layer, macs in cost.layers.items()]
    print_table(f"{name}, {cost.size[0]}x{cost.size[1]} px", ("layer", "GMAC", "percent"), rows)
    print()


def _show_summary(names: list[str], costs: list[Cost], seconds: list[float | None]) -> None:
    from wsss_rt.tables import print_table

    header = ["model", "image", "parameters (M)", "GMAC", "of the first"]
    rows = [
        [
            name,
            f"{cost.size[0]}x{cost.size[1]}",
            f"{cost.parameters / 1e6:.2f}",
            f"{cost.total / 1e9:.3f}",
            f"{cost.total / costs[0].total:.3f}",
        ]
        for name, cost in zip(names, costs, strict=True)
    ]
    if seconds[0] is not None:
        header += ["seconds", "of the first"]
        for row, value in zip(rows, seconds, strict=True):
            assert value is not None
            row += [f"{value:.3f}", f"{value / seconds[0]:.3f}"]
    print_table("", header, rows)
    print("\nmultiply-accumulates of one image by fvcore's rules; see training/cost.py")


def _parse_size(text: str) -> tuple[int, int]:
    height, sign, width = text.lower().partition("x")
    if not sign or not height.isdigit() or not width.isdigit() or not int(height) or not int(width):
        raise UsageError(f"--size {text!r} is no size", fix="write it as height x width: --size 500x375")
    return int(height), int(width)


def _parse(settings: list[str]) -> dict[str, Any]:
    from wsss_rt.training.config import parse_settings

    return parse_settings(settings)
