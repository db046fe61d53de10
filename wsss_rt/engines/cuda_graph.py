"""CUDA graphs: a sequence of launches recorded once and started by one call.

pycuda has none, so the driver is asked directly: five functions of
https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__GRAPH.html and group__CUDA__STREAM.html.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

# other threads may allocate while this one records
_THREAD_LOCAL = 1


class CaptureFailed(RuntimeError):
    """What was to be recorded cannot be; it can still run as it is."""


@cache
def load_driver() -> Any:
    """NVIDIA's driver, with the types of what is called here."""
    driver = ctypes.CDLL("libcuda.so.1")
    pointer = ctypes.POINTER(ctypes.c_void_p)
    driver.cuStreamBeginCapture_v2.argtypes = [ctypes.c_void_p, ctypes.c_int]
    driver.cuStreamEndCapture.argtypes = [ctypes.c_void_p, pointer]
    driver.cuGraphInstantiateWithFlags.argtypes = [pointer, ctypes.c_void_p, ctypes.c_ulonglong]
    driver.cuGraphLaunch.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    driver.cuGraphExecDestroy.argtypes = [ctypes.c_void_p]
    driver.cuGraphDestroy.argtypes = [ctypes.c_void_p]
    driver.cuGetErrorString.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    return driver


class CudaGraph:
    """What ``work`` enqueues on a stream, recorded and not run.

    Args:
        stream: the handle of a stream of one's own.
        work: enqueues on that stream and nowhere else; it must neither wait nor allocate.

    Raises:
        CaptureFailed: the driver, or ``work``, refuses.
    """

    def __init__(self, stream: int, work: Callable[[], None]) -> None:
        self._driver = load_driver()
        self._executable: ctypes.c_void_p | None = None
        graph = ctypes.c_void_p()
        self._check(self._driver.cuStreamBeginCapture_v2(stream, _THREAD_LOCAL))
        try:
            work()
        except RuntimeError as error:
            # the stream stays unusable until the recording is ended
            self._driver.cuStreamEndCapture(stream, ctypes.byref(graph))
            raise CaptureFailed(str(error)) from error
        self._check(self._driver.cuStreamEndCapture(stream, ctypes.byref(graph)))
        executable = ctypes.c_void_p()
        try:
            self._check(self._driver.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0))
        finally:
            self._driver.cuGraphDestroy(graph)
        self._executable = executable

    def launch(self, stream: int) -> None:
        """Enqueue all of it.

        Raises:
            RuntimeError: the driver refuses.
        """
        status = self._driver.cuGraphLaunch(self._executable, stream)
        if status:
            raise RuntimeError(_words(self._driver, status))

    def close(self) -> None:
        """Free it; harmless when repeated."""
        executable, self._executable = self._executable, None
        if executable is not None:
            self._driver.cuGraphExecDestroy(executable)

    def _check(self, status: int) -> None:
        if status:
            raise CaptureFailed(_words(self._driver, status))


def _words(driver: Any, status: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    return (text.value or b"an unknown error").decode("ascii", "replace") + f" (CUDA error {status})"
