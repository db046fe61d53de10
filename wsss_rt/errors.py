"""Errors that a user sees: what happened, why, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum


class WsssError(Exception):
    """The command cannot run or cannot go on; ends with ``exit_code``.

    Args:
        what: what happened, naming the file or value.
        why: the reason, where it isn't in ``what``.
        fix: what the user can do.
        code: a short stable identifier for scripts, snake_case.
    """

    exit_code = 1
    default_code = "cannot_run"

    def __init__(self, what: str, *, why: str = "", fix: str = "", code: str | None = None) -> None:
        self.what, self.why, self.fix = what, why, fix
        self.code = code or self.default_code
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = (self.what, self.why, self.fix)
        return ". ".join(part.strip().rstrip(".") for part in parts if part)


class UsageError(WsssError):
    """The command line or a configuration file is wrong."""

    exit_code = 2
    default_code = "usage"


class MissingExtraError(WsssError):
    """A command needs a package of an optional extra.

    Args:
        command: what the user wanted to run.
        extra: the name of the extra that brings the package.
        package: the import that failed.
    """

    default_code = "missing_extra"

    def __init__(self, command: str, *, extra: str, package: str) -> None:
        super().__init__(
            f"{command} needs {package}, which is not installed",
            fix=f"install it with: pip install 'wsss-rt[{extra}]'",
        )


class ImageErrorCode(StrEnum):
    """Why a single image was not labelled; the value is what the manifest stores."""

    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    UNSUPPORTED_FORMAT = "unsupported_format"
    UNSUPPORTED_PIXELS = "unsupported_pixels"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    NOT_A_FILE = "not_a_file"
    NO_PERMISSION = "no_permission"
    VANISHED = "vanished"
    NO_TAGS = "no_tags"
    OUT_OF_MEMORY = "out_of_memory"
    NONFINITE_OUTPUT = "nonfinite_output"
    ENGINE = "engine"


class ImageError(WsssError):
    """One image cannot be labelled; the others go on."""

    default_code = "image"

    def __init__(self, code: ImageErrorCode, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix, code=code.value)


def nearest(value: str, choices: Iterable[str]) -> str:
    """A sentence that offers the closest valid name, or lists them all.

    Args:
        value: what the user wrote.
        choices: the valid names.
    """
    names = sorted(choices)
    close = difflib.get_close_matches(value.lower(), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "choose one of: " + ", ".join(names)
