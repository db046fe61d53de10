"""Batches that fit the device's memory: smaller ones after it ran out, for the rest of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from wsss_rt.errors import ImageError, ImageErrorCode

Output = TypeVar("Output")


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what :func:`wsss_rt.engines.runtime.engine_error` makes of exhausted memory."""
    return isinstance(error, ImageError) and error.code == ImageErrorCode.OUT_OF_MEMORY.value


class BatchLimit:
    """Halves batches that do not fit, and remembers what does, as pixels of a batch.

    Only exhausted memory is answered by trying again. Any other error goes to the caller at once: after an
    illegal access a device answers every further call with the same one.

    Args:
        free: called before each new try; gives back what the library keeps cached.

    Attributes:
        pixels: of the largest batch that may still be tried; None until one did not fit.
    """

    def __init__(self, free: Callable[[], None] | None = None) -> None:
        self._free = free
        self.pixels: int | None = None

    def run(self, images: Any, run_batch: Callable[[Any], Output]) -> Iterator[Output]:
        """Outputs of the batch's parts, in order: one part, as long as nothing ran out.

        Args:
            images: (B, 3, H, W), an array or tensor that can be sliced.
            run_batch: runs a part; raises :class:`ImageError` ``out_of_memory`` where that is too large.

        Raises:
            ImageError: ``out_of_memory``, where a single image is too large.
            WsssError: whatever else ``run_batch`` raises, at once.
        """
        count, area = images.shape[0], images.shape[2] * images.shape[3]
        start = 0
        while start < count:
            size = min(count - start, self._most(area) or count)
            try:
                output = run_batch(images[start : start + size])
            except ImageError as error:
                if not out_of_memory(error) or size == 1:
                    raise
                self.pixels = size // 2 * area
            else:
                start += size
                yield output
                continue
            # outside of the handler, whose traceback keeps the failed call's tensors alive
            if self._free is not None:
                self._free()

    def _most(self, area: int) -> int | None:
        return None if self.pixels is None else max(1, self.pixels // area)
