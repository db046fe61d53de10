"""``wsss-rt bench --count``: multiply-accumulates of models, layer by layer."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from wsss_rt.training.cost import Cost

_PACKAGES = ("torch", "timm")
_DEFAULT_CLASSES = 20


@dataclass(frozen=True)
class CountRequest:
    """What to count.

    Attributes:
        models: names of methods, run folders, model files.
        size: (height, width) of the image, pixels; None takes each model's training size.
        method_options: of methods named by their name: ``classes``, ``backbone``, ``img_size``, and options
            of the method; None is the default.
        settings: more of these, as ``OPTION=VALUE``.
        runs: passes of each to time in PyTorch.
    """

    models: tuple[str, ...]
    size: tuple[int, int] | None
    method_options: dict[str, Any]
    settings: tuple[str, ...]
    runs: int


def count_models(request: CountRequest, *, layers: bool, json_out: Path | None) -> None:
    """Count and print.

    Args:
        request: what to count.
        layers: show every layer.
        json_out: write JSON there in place of tables; ``-`` is stdout.

    Raises:
        UsageError: no such method, run or model, or an option that does not go with it.
        MissingExtraError: PyTorch or timm is not installed.
    """
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("wsss-rt bench --count", extra="train", package=package)
    given = {**request.method_options, **_parse(list(request.settings))}
    given = {key: value for key, value in given.items() if value is not None}

    from wsss_rt.training.cost import count as count_pass
    from wsss_rt.training.cost import meta_model

    names = list(request.models)
    specs = [_describe(name, given) for name in names]
    costs: list[Cost] = []
    for method, num_classes, arguments in specs:
        model: Any = meta_model(method, num_classes=num_classes, **arguments)
        costs.append(count_pass(model, request.size or (model.img_size, model.img_size)))
    seconds: list[float | None] = _time(specs, costs, request.runs) if request.runs else [None] * len(costs)
    if json_out is not None:
        rows = [_as_dict(*row) for row in zip(names, specs, costs, seconds, strict=True)]
        write_json(json.dumps(rows, indent=2) + "\n", json_out)
        return
    if layers:
        for name, cost in zip(names, costs, strict=True):
            _show_layers(name, cost)
    _show_summary(names, costs, seconds)


def write_json(text: str, out: Path) -> None:
    """Write a report to a file, or to stdout where it is called ``-``."""
    if str(out) == "-":
        print(text, end="", flush=True)
        return
    from wsss_rt.io.atomic import write_atomic

    write_atomic(out, text.encode())


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


def _parse(settings: list[str]) -> dict[str, Any]:
    from wsss_rt.training.config import parse_settings

    return parse_settings(settings)
