"""Settings of `label`: a flag goes before the TOML file, the file before the default."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wsss_rt.errors import UsageError, nearest
from wsss_rt.options import LabelOptions
from wsss_rt.refine import refiner_names
from wsss_rt.refine.params import DEFAULT_PRESET, crf_params
from wsss_rt.refine.walk_params import DEFAULT_PRESET as DEFAULT_WALK
from wsss_rt.refine.walk_params import walk_params

TABLE = "label"


def text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError("expected text")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A list of strings; a single one may carry commas."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError("expected a list of text")
    return tuple(item.strip() for item in items if item.strip())


def paths(value: Any) -> tuple[str, ...]:
    """One path or a list of them; commas are part of a name."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError("expected a list of paths")
    return tuple(items)


def truth(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def whole(value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("expected a whole number")
    return value


def number(value: Any) -> float:
    """A number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected a number")
    return float(value)


def numbers(value: Any) -> tuple[float, ...]:
    """A list of numbers, or text such as ``1.0,0.75``."""
    if isinstance(value, str):
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            raise ValueError("expected numbers separated by commas") from None
    if not isinstance(value, list | tuple):
        raise ValueError("expected a list of numbers")
    return tuple(number(item) for item in value)


def band(value: Any) -> tuple[float, float]:
    """Two numbers, LO,HI."""
    limits = numbers(value)
    if len(limits) != 2:
        raise ValueError("expected two numbers, LO,HI")
    return limits[0], limits[1]


def pair(value: Any) -> tuple[float, ...]:
    """Two numbers, SXY,COMPAT."""
    found = numbers(value)
    if len(found) != 2:
        raise ValueError("expected two numbers, SXY,COMPAT")
    return found


def triple(value: Any) -> tuple[float, ...]:
    """Three numbers, SXY,SRGB,COMPAT."""
    found = numbers(value)
    if len(found) != 3:
        raise ValueError("expected three numbers, SXY,SRGB,COMPAT")
    return found


def alphas(value: Any) -> tuple[float | None, ...]:
    """One number, A, or two, LOW,HIGH."""
    found = (number(value),) if isinstance(value, int | float) else numbers(value)
    if len(found) not in (1, 2):
        raise ValueError("expected one number, A, or two, LOW,HIGH")
    return found if len(found) == 2 else (*found, None)


def batch_size(value: Any) -> int:
    """A whole number of at least 1, or ``auto``, which is 0 here."""
    if value == "auto":
        return 0
    text_ = str(value)
    if isinstance(value, bool) or not text_.isdecimal() or int(text_) < 1:
        raise ValueError("expected a whole number of at least 1, or auto")
    return int(text_)


# every setting once: its name on the command line and in TOML, and what reads its value
SETTINGS: Mapping[str, Callable[[Any], Any]] = {
    "input": paths,
    "out": text,
    "model": text,
    "tags": text,
    "format": texts,
    "refine": text,
    "crf-preset": text,
    "crf-spatial": pair,
    "crf-bilateral": triple,
    "crf-iterations": whole,
    "crf-alpha": alphas,
    "crf-stop": number,
    "crf-memory": number,
    "crf-backend": text,
    "affinity": text,
    "walk-preset": text,
    "walk-radius": whole,
    "walk-beta": number,
    "walk-steps": whole,
    "walk-alpha": number,
    "scales": numbers,
    "flip": truth,
    "background": number,
    "ignore-band": band,
    "backend": text,
    "device": text,
    "precision": text,
    "batch": batch_size,
    "threads": whole,
    "skip-parity": truth,
    "resume": truth,
    "dry-run": truth,
    "limit": whole,
    "fail-fast": truth,
    "max-errors": whole,
    "max-pixels": whole,
    "json": truth,
    "quiet": truth,
}
OPTION_FIELDS = {
    "scales": "scales",
    "flip": "flip",
    "background": "background",
    "ignore-band": "ignore_band",
    "refine": "refine",
    "backend": "backend",
    "device": "device",
    "precision": "precision",
    "batch": "batch",
    "threads": "threads",
    "skip-parity": "skip_parity",
    "max-pixels": "max_pixels",
    "crf-memory": "crf_memory",
    "crf-backend": "crf_backend",
    "affinity": "affinity",
}
# the fields of CrfParams and WalkParams that each setting gives
REFINER_FIELDS = {
    "crf-spatial": ("spatial_sxy", "spatial_compat"),
    "crf-bilateral": ("bilateral_sxy", "bilateral_srgb", "bilateral_compat"),
    "crf-iterations": ("iterations",),
    "crf-alpha": ("alpha", "high_alpha"),
    "crf-stop": ("stop",),
    "walk-radius": ("radius",),
    "walk-beta": ("beta",),
    "walk-steps": ("steps",),
    "walk-alpha": ("alpha",),
}


def read_config(path: Path) -> dict[str, Any]:
    """Settings of a TOML file, at its top or in its table ``[label]``; dashes and underscores are the same.

    Raises:
        UsageError: no such file, no TOML, or a key that is no setting, with the nearest one.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}", why=error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML", why=str(error)) from error
    table = raw.pop(TABLE, {})
    if not isinstance(table, dict):
        raise UsageError(f"[{TABLE}] in {path} is not a table")
    settings: dict[str, Any] = {}
    for key, value in [*raw.items(), *table.items()]:
        name = key.replace("_", "-")
        if name not in SETTINGS:
            raise UsageError(f"unknown setting {key!r} in {path}", fix=nearest(name, SETTINGS))
        settings[name] = _parse(name, value, where=f"{name} in {path}")
    return settings


def merge_settings(flags: Mapping[str, Any], config: Path | None) -> dict[str, Any]:
    """What was set anywhere; a flag that is None was not given.

    Raises:
        UsageError: as :func:`read_config`, or a flag's value that cannot be read.
    """
    settings = {} if config is None else read_config(config)
    for name, value in flags.items():
        if value is not None and value != []:
            settings[name] = _parse(name, value, where=f"--{name}")
    for name, least in (("limit", 1), ("max-errors", 0)):
        if settings.get(name, least) < least:
            raise UsageError(f"{name} must be at least {least}, not {settings[name]}")
    return settings


def label_options(settings: Mapping[str, Any]) -> LabelOptions:
    """The settings that say how to label.

    Raises:
        UsageError: a value out of range, or a setting of a refiner that does not run.
    """
    chosen = {field: settings[name] for name, field in OPTION_FIELDS.items() if name in settings}
    running = refiner_names(settings.get("refine", "none"))
    for refiner, title, begins in (
        ("crf", "CRF", ("crf-",)),
        ("walk", "walk", ("walk-", "affinity")),
    ):
        given = [name for name in settings if name.startswith(begins)]
        if given and refiner not in running:
            raise UsageError(f"{given[0]} is set, and no {title} runs", fix=f"add --refine {refiner}")
    return LabelOptions(
        **chosen,
        crf=crf_params(settings.get("crf-preset", DEFAULT_PRESET), _changes(settings, "crf-")),
        walk=walk_params(settings.get("walk-preset", DEFAULT_WALK), _changes(settings, "walk-")),
    )


def _changes(settings: Mapping[str, Any], begins: str) -> dict[str, float | None]:
    """Fields of a refiner's parameters, by the settings whose names begin so."""
    changes: dict[str, float | None] = {}
    for name, fields in REFINER_FIELDS.items():
        if name in settings and name.startswith(begins):
            values = settings[name] if isinstance(settings[name], tuple) else (settings[name],)
            changes |= dict(zip(fields, values, strict=True))
    return changes


def _parse(name: str, value: Any, *, where: str) -> Any:
    try:
        return SETTINGS[name](value)
    except ValueError as error:
        raise UsageError(f"{where} cannot be {value!r}", why=str(error)) from error
