"""Whether this machine has NVIDIA's driver, found out once instead of at every traced operation."""

from __future__ import annotations

import ctypes
import os
import sys


def settle_absent_driver() -> bool:
    """Tell libraries of this process and its children that there is no GPU, where there can be none.

    While torch traces a model it asks for each operation whether there is a GPU, and without a driver every
    answer searches the system for its library. An empty list of visible devices spares the search. For the
    start of a command; it sets the environment of the whole process.

    Returns:
        Whether that was set: on Linux without libcuda, and where nobody chose devices.
    """
    if not sys.platform.startswith("linux") or "CUDA_VISIBLE_DEVICES" in os.environ:
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return True
    return False
