"""The files in which what was found out about kernels on this machine is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wsss_rt.io.atomic import write_atomic
from wsss_rt.io.cache import cache_folder


def cache_file(title: str) -> Path:
    """A JSON file in ``kernels`` below the user's cache folder, named by what a person would call it."""
    name = "".join(letter if letter.isalnum() else "-" for letter in title)
    return cache_folder("kernels") / f"{name}.json"


def write_json(path: Path, content: Any) -> None:
    """Replace a file whole, so that no reader sees half of it; its folder is made where it is missing.

    Raises:
        WsssError: it cannot be written.
    """
    write_atomic(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
