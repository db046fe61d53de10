"""The folder in which what was found out about kernels on this machine is kept."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/wsss-rt/kernels``, or the same below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if os.path.isabs(root) else Path(os.path.expanduser("~")) / ".cache"
    return base / "wsss-rt" / "kernels"


def cache_file(title: str) -> Path:
    """A JSON file in :func:`cache_folder`, named by what a person would call it."""
    return cache_folder() / ("".join(letter if letter.isalnum() else "-" for letter in title) + ".json")


def write_json(path: Path, content: Any) -> None:
    """Replace a file whole, so that no reader sees half of it; its folder is made where it is missing.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:100]}-", suffix=".partial")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(content, indent=1, sort_keys=True) + "\n")
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise
