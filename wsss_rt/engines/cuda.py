"""The GPU through pycuda: its primary context, streams, memory on both sides, and errors of our kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wsss_rt.errors import UsageError
from wsss_rt.gpu_driver import driver_problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PYCUDA_FIX = (
    "pip install 'wsss-rt[tensorrt]'; pycuda is compiled then, and needs a C++ compiler, CUDA's headers with "
    "curand's on CPATH, and libcuda and libcurand on LIBRARY_PATH"
)


class GpuUnavailable(UsageError):
    """There is no GPU that can be used, or pycuda does not reach it."""

    default_code = "gpu_unavailable"


class Gpu:
    """The first visible GPU.

    The primary context is used, which is TensorRT's own too. pycuda's stack of contexts belongs to a thread,
    so whatever touches the device runs within :meth:`active`, from any thread.

    Raises:
        GpuUnavailable: no driver, no GPU, or no pycuda.
    """

    def __init__(self) -> None:
        problem = driver_problem()
        if problem:
            raise GpuUnavailable(
                "TensorRT needs a GPU of NVIDIA",
                why=problem,
                fix="use --backend onnxruntime or openvino; see `wsss-rt doctor`",
            )
        try:
            from pycuda import driver
        except ModuleNotFoundError as error:
            raise GpuUnavailable(
                "TensorRT is driven through pycuda, which is not installed", fix=PYCUDA_FIX
            ) from error
        except ImportError as error:
            raise GpuUnavailable(
                "pycuda is installed and cannot be imported",
                why=" ".join(str(error).split())[:300],
                fix="pip install --force-reinstall --no-cache-dir --no-binary pycuda pycuda, with this CUDA",
            ) from error
        self._driver = driver
        driver.init()
        device = driver.Device(0)
        self._context = device.retain_primary_context()
        self.name: str = device.name()
        self.compute_capability = ".".join(str(part) for part in device.compute_capability())
        self.memory = int(device.total_memory())

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the context this thread's; CUDA's errors become Python's own.

        Raises:
            MemoryError: the device's memory is exhausted.
            RuntimeError: any other error of CUDA, with its text.
        """
        self._context.push()
        try:
            yield
        except self._driver.MemoryError as error:
            raise MemoryError(f"the GPU is out of memory: {error}") from error
        except self._driver.Error as error:
            raise RuntimeError(str(error)) from error
        finally:
            self._driver.Context.pop()

    def free_memory(self) -> int:
        """Bytes of the device that nobody uses."""
        free, _ = self._driver.mem_get_info()
        return int(free)

    def stream(self) -> Any:
        """A new stream; its ``handle`` is what TensorRT takes."""
        return self._driver.Stream()

    def event(self) -> Any:
        """A new event, to time what runs between two of them."""
        return self._driver.Event()

    def block(self) -> Block:
        """Memory on both sides that grows as needed."""
        return Block(self._driver)


class Block:
    """Memory on the device with pinned memory of the host beside it, which grows and never shrinks.

    Attributes:
        address: on the device; 0 before anything was reserved.
        moved: how often the address has changed; what was captured with an earlier one is void.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._device: Any = None
        self._host: NDArray[np.uint8] | None = None
        self._size = 0
        self.address, self.moved = 0, 0

    def reserve(self, size: int) -> int:
        """At least ``size`` bytes on the device; the address. What was there is lost where it grows."""
        if size > self._size:
            # given back before the new one is asked for; nothing that was started may still use it
            self.free()
            self._device = self._driver.mem_alloc(size)
            self.address, self._size = int(self._device), size
            self.moved += 1
        return self.address

    def host(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Pinned float32 memory of the host, without which a copy is not asynchronous."""
        import numpy as np

        size = 4 * int(np.prod(shape, dtype=np.int64))
        if self._host is None or self._host.nbytes < size:
            self._host = self._driver.pagelocked_empty(size, np.uint8)
        assert self._host is not None
        return self._host[:size].view(np.float32).reshape(shape)

    def upload(self, values: NDArray[np.float32], stream: Any) -> None:
        """Start copying what :meth:`host` gave to the device."""
        self._driver.memcpy_htod_async(self.address, values, stream)

    def download(self, values: NDArray[np.float32], stream: Any) -> None:
        """Start copying from the device into what :meth:`host` gave."""
        self._driver.memcpy_dtoh_async(values, self.address, stream)

    def free(self) -> None:
        """Give the device's memory back; harmless when repeated."""
        device, self._device = self._device, None
        self.address, self._size = 0, 0
        if device is not None:
            device.free()
