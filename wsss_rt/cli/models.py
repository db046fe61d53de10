"""``wsss-rt models``: which models are at hand, and what their cards say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from wsss_rt.model_card import ModelCard


def models(
    model: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="An embedded model, or a model file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the models at hand, or show a model's card.

    The card is read from the model file itself, after its checksum was verified.

    \b
    wsss-rt models
    wsss-rt models scenes-v2
    wsss-rt models my.onnx --json
    """
    import json

    from wsss_rt.assets import embedded_models, find_model
    from wsss_rt.model_card import read_card

    if model is not None:
        path = find_model(model)
        card = read_card(path)
        if as_json:
            print(json.dumps(asdict(card) | _file(path), indent=2, ensure_ascii=False))
        else:
            _show(card, path)
        return
    embedded = embedded_models()
    default = list(embedded)[-1] if embedded else None
    cards = {name: read_card(path) for name, path in embedded.items()}
    if as_json:
        listed = [
            {"name": name, "default": name == default, **_file(embedded[name]), **asdict(card)}
            for name, card in cards.items()
        ]
        print(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    if not cards:
        print("no model is embedded in this installation; `wsss-rt export` writes model files")
        return
    from wsss_rt.tables import print_table

    rows = [
        [
            name + (" (default)" if name == default else ""),
            card.method,
            card.kind,
            f"{len(card.classes)}",
            f"{embedded[name].stat().st_size / 1e6:.1f}",
        ]
        for name, card in cards.items()
    ]
    print_table("", ("model", "method", "kind", "classes", "MB"), rows, left=3)
    print("\na card in full: wsss-rt models NAME")


def _file(path: Path) -> dict[str, Any]:
    return {"file": str(path), "bytes": path.stat().st_size}


def _show(card: ModelCard, path: Path) -> None:
    spec, advice = card.input, card.recommended
    size = {
        "native": "any size, as it is",
        "short_side": f"shorter side {spec.size}",
        "fixed": f"{spec.size} x {spec.size}",
    }
    lines: list[tuple[str, str]] = [
        ("file", f"{path}, {path.stat().st_size:,} bytes"),
        ("method", f"{card.method} ({card.kind}, {card.precision})"),
        ("classes", f"{len(card.classes)}: {', '.join(card.classes)}"),
        ("input", f"{size[spec.size_policy]}, tokens of {spec.patch} px, at most {spec.max_pixels:,} pixels"),
        ("normalise", f"mean {_numbers(spec.mean)}, std {_numbers(spec.std)}"),
        ("outputs", ", ".join(card.outputs)),
        ("background", f"{advice.background:g}"),
        ("scales", _numbers(advice.scales) + (", each also mirrored" if advice.flip else "")),
        ("tags", _thresholds(card)),
        ("chosen by", advice.provenance),
    ]
    for title, values in (("options", card.options), ("training", card.training), ("quality", card.quality)):
        lines += [(title if index == 0 else "", text) for index, text in enumerate(_flat(values))]
    lines += [("sha256", f"{card.weights_sha256} (of graph and weights, verified)")]
    for name, text in lines:
        print(f"{name:<12}{text}")


def _thresholds(card: ModelCard) -> str:
    values = card.recommended.tag_thresholds
    if not values:
        return "present from probability 0.5"
    if len(set(values)) == 1:
        return f"present from probability {values[0]:g}"
    pairs = zip(card.classes, values, strict=False)
    return "present from " + ", ".join(f"{name} {value:g}" for name, value in pairs)


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _flat(value: Any, *, prefix: str = "") -> list[str]:
    """A nested dictionary as lines ``a.b: value``."""
    if isinstance(value, Mapping):
        return [
            line
            for key, entry in value.items()
            for line in _flat(entry, prefix=f"{prefix}.{key}" if prefix else str(key))
        ]
    shown = (
        _numbers(value) if _all_numbers(value) else f"{value:g}" if isinstance(value, float) else str(value)
    )
    return [f"{prefix}: {shown}" if prefix else shown]


def _all_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(entry, int | float) for entry in value)
