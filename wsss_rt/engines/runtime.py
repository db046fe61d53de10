"""What the CPU engines share: a batch is run one image at a time, failures get the image's error class."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt.engines.base import EngineOutput
from wsss_rt.engines.batch_limit import BatchLimit
from wsss_rt.errors import ImageError, ImageErrorCode, UsageError, WsssError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.model_card import ModelCard

# more than this, on a machine without a fraction of them as processors, is a slip of the hand
_MANY_THREADS = 64
_THREADS_EACH = 4
_MEMORY_MARKS = (
    "failed to allocate", "bad_alloc", "bad allocation", "out of memory", "can't allocate",
    # numpy's, where an operator of ours runs inside a library that keeps the text alone
    "unable to allocate", "memoryerror",
)  # fmt: skip
# after one of these a CUDA context answers every further call with the same error
_DEAD_DEVICE_MARKS = ("illegal memory access", "device-side assert", "unspecified launch failure")


def default_threads() -> int:
    """Processors that this process may use: its affinity, and the container's quota if there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        # not Linux, or cgroup version 1: the affinity alone decides
        pass
    return max(1, count)


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that no machine like this one can want.

    Raises:
        UsageError: below 1, or far beyond the processors that there are: libraries start them all, and spend
            minutes on it in which nothing answers.
    """
    if threads is None:
        return
    if threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    present = os.cpu_count() or 1
    if threads > max(_MANY_THREADS, _THREADS_EACH * present):
        raise UsageError(
            f"threads is {threads}, and this machine has {present} processors",
            fix=f"--threads {default_threads()}, which is the default",
        )


def running_precision(card: ModelCard, rest: str) -> str:
    """What an artifact runs in: a quantised one's int8 layers, and the rest as the engine computes it."""
    if card.precision != "int8":
        return rest
    return "int8" if rest == "float32" else f"int8+{rest}"


def check_images(images: NDArray[np.float32], patch: int) -> None:
    """Refuse what no engine can run.

    Raises:
        ValueError: not float32 (B, 3, H, W), which is a mistake of the caller.
        ImageError: a side shorter than one token.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[0] < 1 or images.dtype.name != "float32":
        raise ValueError(f"expected float32 (B, 3, H, W), got {images.dtype} {images.shape}")
    height, width = images.shape[2:]
    if min(height, width) < patch:
        raise ImageError(
            ImageErrorCode.TOO_SMALL,
            f"an input of {width}x{height} px is smaller than one token",
            why=f"the model's tokens are {patch}x{patch} px",
        )


def run_each(
    images: NDArray[np.float32],
    run_one: Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]],
    backend: str,
) -> tuple[NDArray[np.float32], ...]:
    """Run every image as a batch of one, and stack the results.

    The libraries split a matrix product by its number of rows, so that an image's last bits depend on how
    many others share its batch. One at a time they cannot, and on a CPU one image already fills the cores.

    Args:
        images: (B, 3, H, W) float32.
        run_one: (1, 3, H, W) to outputs that begin with a batch of one, owned by the caller.
        backend: what to name in errors.

    Raises:
        ImageError: code ``out_of_memory`` or ``engine``.
        WsssError: code ``device_lost`` when no further call can succeed.
    """
    import numpy as np

    outputs = []
    for index in range(images.shape[0]):
        try:
            outputs.append(run_one(np.ascontiguousarray(images[index : index + 1])))
        except (RuntimeError, MemoryError, ValueError) as error:
            raise engine_error(error, backend, images.shape) from error
    return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))


def run_parts(
    images: NDArray[np.float32],
    run_batch: Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]],
    backend: str,
    limit: BatchLimit,
) -> tuple[NDArray[np.float32], ...]:
    """Run a batch whole, or in the parts that fit the device's memory, and join the results.

    Args:
        images: (B, 3, H, W) float32.
        run_batch: a part of it to outputs that begin with its batch, owned by the caller.
        backend: what to name in errors.
        limit: of this engine; remembers from call to call.

    Raises:
        ImageError: code ``out_of_memory`` where a single image is too large, or ``engine``.
        WsssError: code ``device_lost`` when no further call can succeed; nothing is tried again then.
    """
    import numpy as np

    def run_part(part: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        try:
            return run_batch(np.ascontiguousarray(part))
        except (RuntimeError, MemoryError, ValueError) as error:
            raise engine_error(error, backend, part.shape) from error

    parts = list(limit.run(images, run_part))
    if len(parts) == 1:
        return parts[0]
    return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))


class LibraryEngine(ABC):
    """What the engines of all libraries share: the attributes of :class:`wsss_rt.engines.base.Engine`.

    A subclass sets ``backend`` and, where they are other ones, ``device`` and ``precision``; its constructor
    ends with ``self._loaded``, whatever the library runs. On a GPU it sets ``self._limit``: batches then run
    whole, or in the parts that fit the device's memory.

    Args:
        card: the model's card.
        threads: processors for one image; by default all that the process may use.
    """

    backend: str
    device = "cpu"
    precision: str

    def __init__(self, card: ModelCard, threads: int | None) -> None:
        self.card = card
        self.precision = running_precision(card, "float32")
        self.choice: dict[str, Any] = {}
        self._threads = threads or default_threads()
        self._limit: BatchLimit | None = None
        self._loaded: Any = None

    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run a batch; see :meth:`wsss_rt.engines.base.Engine.run`."""
        check_images(images, self.card.input.patch)
        if self._limit is not None:
            return run_parts(images, self._run_one, self.backend, self._limit)
        return run_each(images, self._run_one, self.backend)

    def infer(self, images: NDArray[np.float32]) -> EngineOutput:
        """Run a batch; see :meth:`wsss_rt.engines.base.Engine.infer`."""
        return EngineOutput(*self.run(images))

    def close(self) -> None:
        """Free the loaded model."""
        self._loaded = None

    @abstractmethod
    def _run_one(self, image: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """(1, 3, H, W) to what the card's ``outputs`` name, a batch of one each, owned by the caller.

        With ``self._limit``, (B, 3, H, W) and batches of B.
        """


def engine_error(error: Exception, backend: str, shape: tuple[int, ...]) -> WsssError:
    """The error that a user sees for an engine's exception."""
    text = " ".join(str(error).split()) or type(error).__name__
    size = f"{shape[-1]}x{shape[-2]} px"
    if any(mark in text.lower() for mark in _DEAD_DEVICE_MARKS):
        return WsssError(
            f"{backend} lost its device on an input of {size}",
            why=_shorten(text),
            fix="start again; a finished mask stays finished",
            code="device_lost",
        )
    if isinstance(error, MemoryError) or any(mark in text.lower() for mark in _MEMORY_MARKS):
        return ImageError(
            ImageErrorCode.OUT_OF_MEMORY,
            f"{backend} ran out of memory on an input of {size}",
            fix="use smaller --scales, or close other programs",
        )
    return ImageError(ImageErrorCode.ENGINE, f"{backend} failed on an input of {size}", why=_shorten(text))


def load_error(error: Exception, backend: str) -> WsssError:
    """The error for a model that a library refuses although its seal is intact."""
    return WsssError(
        f"{backend} cannot load the model",
        why=_shorten(" ".join(str(error).split())),
        fix=f"upgrade {backend}, or choose another --backend",
        code="engine_load",
    )


def _shorten(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
