"""Copies and waits that keep a device busy: pinned memory, a stream for each thread; plain on a CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Mark:
    """A moment in the work of a stream: when all that was asked for before it is done.

    On a CPU that is the moment itself.
    """

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._moment = time.perf_counter()
        self._event: Any = None
        if stream is not None:
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(stream)

    def wait(self) -> None:
        """Until it is reached; other threads go on meanwhile."""
        if self._event is not None:
            self._event.synchronize()

    def milliseconds_since(self, earlier: Mark) -> float:
        """Time of the device between two marks that were reached."""
        if self._event is not None:
            return float(earlier._event.elapsed_time(self._event))
        return 1e3 * (self._moment - earlier._moment)


class Streams:
    """A stream of its own for every thread that works on a device, and one for uploads.

    Args:
        device: any; on a CPU every method does the plain thing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._is_gpu = device.type == "cuda"
        self._of_thread = threading.local()
        self._uploads = torch.cuda.Stream(device) if self._is_gpu else None

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is launched inside goes to this thread's stream, and records no gradients."""
        stream = self._own()
        with torch.inference_mode(), torch.cuda.stream(stream) if stream is not None else nullcontext():
            yield

    def mark(self) -> Mark:
        """This moment in this thread's stream."""
        return Mark(self._own())

    def wait(self) -> None:
        """Until all that this thread asked for is done; other threads go on meanwhile."""
        stream = self._own()
        if stream is not None:
            stream.synchronize()

    def upload(self, array: NDArray[Any]) -> Tensor:
        """A copy on the device, beside what this thread's stream still computes; inside :meth:`work`."""
        host = torch.from_numpy(np.ascontiguousarray(array))
        if self._uploads is None:
            return host.clone()
        own = self._own()
        pinned = host.pin_memory()
        with torch.cuda.stream(self._uploads):
            moved = pinned.to(self.device, non_blocking=True)
        assert own is not None
        own.wait_stream(self._uploads)
        # its memory belongs to the other stream, which must not reuse it before this one is done
        moved.record_stream(own)
        return moved

    def download(self, tensor: Tensor) -> Tensor:
        """A copy on the host, complete once a later mark was reached or :meth:`wait` came back."""
        if not self._is_gpu:
            return tensor.clone()
        target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return target.copy_(tensor, non_blocking=True)

    def _own(self) -> torch.cuda.Stream | None:
        if not self._is_gpu:
            return None
        stream = getattr(self._of_thread, "stream", None)
        if stream is None:
            stream = self._of_thread.stream = torch.cuda.Stream(self.device)
        return stream
