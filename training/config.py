"""Configuration of a training run: filled from defaults, a TOML recipe and flags, in that order."""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from wsss_rt.errors import UsageError, nearest
from wsss_rt.training.config_checks import check_values
from wsss_rt.training.recipes import read_recipe, recipe_names
from wsss_rt.training.sections import (
    Augment,
    DataSection,
    Layout,
    LrUpdate,
    ModelSection,
    Optimizer,
    OptimSection,
    Precision,
    RunSection,
    Schedule,
    TrainConfig,
)

# the one address of everything that has to do with a configuration
__all__ = [
    "Augment",
    "DataSection",
    "Layout",
    "LrUpdate",
    "ModelSection",
    "OptimSection",
    "Optimizer",
    "Precision",
    "RunSection",
    "Schedule",
    "TrainConfig",
    "build_config",
    "differences",
    "parse_settings",
    "read_recipe",
    "recipe_names",
    "to_toml",
]

_RESNET38 = ModelSection(backbone="resnet38d", img_size=448)
_NEW_HEAD = OptimSection(head_lr_factor=10.0)
#: Sections whose defaults are not the usual ones, by method.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "l2g": {"model": _RESNET38, "data": DataSection(augment=Augment.SHORT_CROP), "optim": _NEW_HEAD},
    "psa": {
        "model": _RESNET38,
        "data": DataSection(augment=Augment.PAD_CROP, val_images=0),
        "optim": _NEW_HEAD,
    },
}
SECTIONS = {"model": ModelSection, "data": DataSection, "optim": OptimSection, "run": RunSection}
# these may change between a run and its continuation; what is trained on is compared by its fingerprint
_FREE_KEYS = {
    ("recipe",), ("data", "source"), ("data", "layout"), ("data", "tags"), ("data", "masks"),
    ("data", "classes"), ("data", "saliency"), ("data", "low_alpha"), ("data", "high_alpha"),
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
    check_values(config)
    return config


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
        changed: dict[str, Any] = {"options": {**current.options, key.removeprefix("options."): value}}
    else:
        names = [item.name for item in fields(current)]
        if key not in names:
            raise UsageError(f"{where}: unknown key {dotted!r}", fix=nearest(key, names))
        wanted = typing.get_type_hints(type(current))[key]
        changed = {key: _typed(value, wanted, dotted, where)}
    return replace(config, **{section: replace(current, **changed)})


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
