"""File names for people."""

from __future__ import annotations

import os


def printable(path: str | bytes | os.PathLike[str]) -> str:
    """A path on one line: bytes that are no UTF-8 and control characters as backslash escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
