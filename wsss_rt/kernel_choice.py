"""What a user says about this project's own kernels: Triton's on a GPU, and those for a processor's tiles."""

from __future__ import annotations

import os

from wsss_rt.errors import UsageError, nearest

VARIABLE = "WSSS_RT_KERNELS"
#: Its values; without it, ``auto``. ``reference`` leaves everything to libraries.
MODES = ("auto", "triton", "reference")


def asked_kernels() -> str:
    """What the environment asks for.

    Raises:
        UsageError: it holds something else.
    """
    mode = os.environ.get(VARIABLE) or "auto"
    if mode not in MODES:
        raise UsageError(f"{VARIABLE} is {mode!r}", fix=nearest(mode, MODES))
    return mode
