"""Which file an image's mask goes to; no two images of a run share one."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable

NAME_MAX = 255


def mask_name(relative: str, *, full: bool = False) -> str:
    """Relative path of an image's mask: its own with the ending ``.png``.

    Args:
        relative: the image's.
        full: keep the image's ending too, ``a.jpg`` to ``a.jpg.png``; for images that differ only in it.
    """
    folder, slash, name = relative.rpartition("/")
    stem = name.rpartition(".")[0]
    stem = name if full or not stem else stem
    if len(os.fsencode(stem)) + len(".png") > NAME_MAX:
        return _with_digest(relative, stem)
    return f"{folder}{slash}{stem}.png"


def _with_digest(relative: str, stem: str) -> str:
    """A mask's name that is short enough and cannot be that of another image."""
    tail = f"-{hashlib.sha256(os.fsencode(relative)).hexdigest()[:12]}.png"
    while len(os.fsencode(stem)) + len(tail) > NAME_MAX:
        stem = stem[:-1]
    folder, slash, _ = relative.rpartition("/")
    return f"{folder}{slash}{stem}{tail}"


def special_masks(relatives: Iterable[str]) -> dict[str, str]:
    """Masks that cannot have their usual name: of images that share a stem, every one gets its full name."""
    names = list(relatives)
    counts = Counter(map(mask_name, names))
    # `x.jpg` beside a folder that is named `x.png`
    folders = {folder for folder in map(os.path.dirname, names) if folder}
    for folder in list(folders):
        while folder := os.path.dirname(folder):
            folders.add(folder)
    special: dict[str, str] = {}
    clashing = [name for name in names if counts[mask_name(name)] > 1 or mask_name(name) in folders]
    while clashing:
        for name in clashing:
            full = mask_name(name, full=True)
            special[name] = full if full not in folders else _with_digest(name, os.path.basename(name))
        taken = set(special.values())
        # `a.jpg.png` beside `a.jpg` and `a.png` would get the name that `a.jpg` has just taken
        clashing = [name for name in names if name not in special and mask_name(name) in taken]
    return special
