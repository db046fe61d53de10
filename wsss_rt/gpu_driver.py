"""Whether this machine has NVIDIA's driver, found out once instead of at every traced operation."""

from __future__ import annotations

import ctypes
import os
import sys

_NO_DEVICE = 100


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


def driver_problem() -> str:
    """Why no GPU of NVIDIA can be used here, in words; empty where one can.

    Asks the driver itself, so that nothing of CUDA needs to be installed. Libraries that start without a
    driver end the process later: TensorRT's lean runtime 11.4 does when it loads a plan.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "NVIDIA's driver is not installed: there is no libcuda.so.1"
    status = int(driver.cuInit(0))
    if status == _NO_DEVICE:
        return "NVIDIA's driver finds no GPU, or CUDA_VISIBLE_DEVICES hides it"
    if status:
        return f"NVIDIA's driver does not start (cuInit answers {status}); nvidia-smi may say why"
    count = ctypes.c_int(0)
    status = int(driver.cuDeviceGetCount(ctypes.byref(count)))
    if status or count.value < 1:
        return "NVIDIA's driver finds no GPU, or CUDA_VISIBLE_DEVICES hides it"
    return ""
