"""Runs ``wsss-rt`` as a user does, as a process of its own, and keeps the time it took."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any


def wsss_rt(*arguments: Any, accept: tuple[int, ...] = (0,)) -> float:
    """Run one command.

    Args:
        arguments: as on the command line.
        accept: exit statuses that are no failure.

    Returns:
        Wall time in seconds, start of the process included.

    Raises:
        SystemExit: any other exit status; the command's own message stands above it.
    """
    words = [str(argument) for argument in arguments]
    print("$ wsss-rt " + " ".join(words), flush=True)
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "wsss_rt", *words])
    if done.returncode not in accept:
        raise SystemExit(f"wsss-rt {words[0]} ended with {done.returncode}")
    return time.perf_counter() - begun
