"""Recipes: settings of whole runs, one TOML file each."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from wsss_rt.errors import UsageError, nearest


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
        text = resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the recipe {name} is not valid TOML", why=str(error)) from error
    raw.pop("description", None)
    return name, raw


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files(__name__)
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))
