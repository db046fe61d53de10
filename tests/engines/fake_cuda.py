"""CUDA without a GPU, for tests: what is enqueued runs when its stream is waited for, and not before.

Stands where ``pycuda.driver`` and libcuda stand. It is strict where a GPU would be wrong in silence or die:
no context on this thread, a copy from memory that is not pinned, freed memory, waiting or allocating while a
graph is recorded.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

NAME, CAPABILITY = "NVIDIA Imaginary 100", (9, 0)


class FakeCuda:
    """The device behind the fake driver.

    Attributes:
        capacity: bytes; an allocation beyond it fails as CUDA's does.
        launches: what ran so far: ``copy``, ``run``, and ``graph`` before what a graph holds.
        poison: text of an error that every further call answers with, as after an illegal access.
    """

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.launches: list[str] = []
        self.poison = ""
        self.heap: dict[int, np.ndarray] = {}
        self.contexts = threading.local()
        self.pinned: list[np.ndarray] = []
        self.streams: dict[int, Any] = {}
        self.recording: Any = None
        self.graphs: dict[int, list[tuple[str, Callable[[], None]]]] = {}
        self._numbers = itertools.count(0x7000, 0x100)
        self.driver = _driver(self)
        self.libcuda = _Libcuda(self)

    def number(self) -> int:
        return next(self._numbers)

    def enqueue(self, handle: int, kind: str, work: Callable[[], None]) -> None:
        stream = self.streams[handle]
        (self.graphs[self.recording] if stream.recording else stream.queue).append((kind, work))

    def memory(self, address: int) -> np.ndarray:
        if address not in self.heap:
            raise self.driver.LogicError("cuMemcpy failed: an illegal memory access was encountered")
        return self.heap[address]

    def check(self) -> None:
        if not getattr(self.contexts, "stack", None):
            raise self.driver.LogicError("invalid device context: no currently active context?")
        if self.poison:
            raise self.driver.LogicError(self.poison)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Stand in for pycuda and the driver for the rest of a test."""
        package = ModuleType("pycuda")
        package.driver = self.driver  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "pycuda", package)
        patch.setitem(sys.modules, "pycuda.driver", self.driver)
        patch.setattr("wsss_rt.engines.cuda.driver_problem", lambda: "")
        patch.setattr("wsss_rt.engines.cuda_graph.load_driver", lambda: self.libcuda)


def _driver(cuda: FakeCuda) -> ModuleType:
    driver = ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    class OutOfMemory(Error):
        pass

    class LogicError(Error):
        pass

    class Context:
        def push(self) -> None:
            stack = cuda.contexts.__dict__.setdefault("stack", [])
            stack.append(self)

        @staticmethod
        def pop() -> None:
            cuda.contexts.stack.pop()

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0

        def retain_primary_context(self) -> Context:
            return Context()

        def name(self) -> str:
            return NAME

        def compute_capability(self) -> tuple[int, int]:
            return CAPABILITY

        def total_memory(self) -> int:
            return cuda.capacity

    class Stream:
        def __init__(self) -> None:
            cuda.check()
            self.handle, self.queue, self.recording = cuda.number(), [], False
            cuda.streams[self.handle] = self

        def synchronize(self) -> None:
            cuda.check()
            if self.recording:
                raise LogicError(
                    "cuStreamSynchronize failed: operation not permitted when stream is capturing"
                )
            waiting, self.queue = self.queue, []
            for kind, work in waiting:
                cuda.launches.append(kind)
                work()

    class Event:
        def __init__(self) -> None:
            self.at = -1

        def record(self, stream: Stream) -> None:
            def now() -> None:
                self.at = len(cuda.launches)

            cuda.enqueue(stream.handle, "event", now)
            self._stream = stream

        def synchronize(self) -> None:
            self._stream.synchronize()

        def time_till(self, other: Any) -> float:
            assert other.at > self.at >= 0, "an event that did not happen yet"
            return float(other.at - self.at)

    class Allocation:
        def __init__(self, size: int) -> None:
            cuda.check()
            if cuda.recording is not None:
                raise LogicError("cuMemAlloc failed: operation not permitted when stream is capturing")
            if sum(entry.nbytes for entry in cuda.heap.values()) + size > cuda.capacity:
                raise OutOfMemory("cuMemAlloc failed: out of memory")
            self._address = cuda.number()
            cuda.heap[self._address] = np.zeros(size, np.uint8)

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            del cuda.heap[self._address]

    def pagelocked_empty(shape: int, dtype: Any) -> np.ndarray:
        cuda.check()
        found = np.empty(shape, dtype)
        cuda.pinned.append(found)
        return found

    def copy(dest: Any, src: Any, stream: Any, host: np.ndarray, address: int, *, to_device: bool) -> None:
        cuda.check()
        assert any(np.shares_memory(host, pinned) for pinned in cuda.pinned), (
            "a copy of memory that is not pinned"
        )
        assert host.flags.c_contiguous

        def work() -> None:
            device = cuda.memory(address)[: host.nbytes]
            assert device.nbytes == host.nbytes, "a copy beyond the end of device memory"
            flat = host.reshape(-1).view(np.uint8)
            if to_device:
                device[:] = flat
            else:
                flat[:] = device

        cuda.enqueue(stream.handle, "copy", work)

    def memcpy_htod_async(dest: int, src: np.ndarray, stream: Any) -> None:
        copy(dest, src, stream, src, dest, to_device=True)

    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Any) -> None:
        # until it has run, what a reader sees is garbage
        dest[...] = np.nan
        copy(dest, src, stream, dest, src, to_device=False)

    def mem_get_info() -> tuple[int, int]:
        cuda.check()
        return cuda.capacity - sum(entry.nbytes for entry in cuda.heap.values()), cuda.capacity

    driver.Error, driver.MemoryError, driver.LogicError = Error, OutOfMemory, LogicError
    driver.Context, driver.Device, driver.Stream, driver.Event = Context, Device, Stream, Event
    driver.mem_alloc = Allocation
    for function in (pagelocked_empty, memcpy_htod_async, memcpy_dtoh_async, mem_get_info):
        setattr(driver, function.__name__, function)
    driver.init = lambda: None
    return driver


class _Libcuda:
    """The functions of libcuda that record and start graphs; ``refuse`` makes recording fail."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.refuse = False

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        assert mode == 1, "other threads could not allocate meanwhile"
        if self.refuse:
            return 900
        number = self._cuda.number()
        self._cuda.graphs[number], self._cuda.recording = [], number
        self._cuda.streams[stream].recording = True
        return 0

    def cuStreamEndCapture(self, stream: int, graph: Any) -> int:
        assert self._cuda.streams[stream].recording
        graph._obj.value, self._cuda.recording = self._cuda.recording, None
        self._cuda.streams[stream].recording = False
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: int) -> int:
        assert flags == 0
        number = self._cuda.number()
        self._cuda.graphs[number] = list(self._cuda.graphs[graph.value])
        executable._obj.value = number
        return 0

    def cuGraphLaunch(self, executable: Any, stream: int) -> int:
        self._cuda.enqueue(stream, "graph", lambda: None)
        for kind, work in self._cuda.graphs[executable.value]:
            self._cuda.enqueue(stream, kind, work)
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:
        del self._cuda.graphs[graph.value]
        return 0

    cuGraphExecDestroy = cuGraphDestroy

    def cuGetErrorString(self, status: int, text: Any) -> int:
        text._obj.value = b"operation not permitted when stream is capturing"
        return 0
