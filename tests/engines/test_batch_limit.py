"""Batches on a device: whole, in parts once memory ran out, and never again after an illegal access."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.label_models import color_card
from wsss_rt.engines.batch_limit import BatchLimit
from wsss_rt.engines.runtime import LibraryEngine
from wsss_rt.errors import ImageError, WsssError


class SmallDevice(LibraryEngine):
    """Doubles what it gets; runs out of memory above a number of pixels.

    Attributes:
        batches: sizes of the batches that were tried.
        freed: how often cached memory was given back.
        error: raised from the call of this number on, in place of a result.
    """

    backend, device = "small device", "cuda:0"

    def __init__(self, *, pixels: int) -> None:
        super().__init__(color_card(), None)
        self.most, self.batches, self.freed = pixels, list[int](), 0
        self.error: tuple[int, Exception] | None = None
        self._limit = BatchLimit(free=self._free)

    def _free(self) -> None:
        self.freed += 1

    def _run_one(self, image: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        self.batches.append(len(image))
        if self.error is not None and len(self.batches) >= self.error[0]:
            raise self.error[1]
        if image.size // 3 > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 8 GiB")
        return image.sum(axis=(2, 3)), image * 2


def numbered(count: int, height: int = 16, width: int = 16) -> NDArray[np.float32]:
    images = np.zeros((count, 3, height, width), np.float32)
    images += np.arange(count, dtype=np.float32)[:, None, None, None]
    return images


def test_a_batch_that_fits_runs_whole() -> None:
    engine = SmallDevice(pixels=8 * 256)
    output = engine.infer(numbered(8))
    assert engine.batches == [8] and engine.freed == 0
    assert np.array_equal(output.maps, numbered(8) * 2)


def test_a_batch_that_does_not_fit_runs_in_parts_and_the_size_is_remembered() -> None:
    engine = SmallDevice(pixels=3 * 256)
    output = engine.infer(numbered(13))
    # 13 and 6 did not fit
    assert engine.batches == [13, 6, 3, 3, 3, 3, 1] and engine.freed == 2
    assert np.array_equal(output.maps, numbered(13) * 2)
    assert np.array_equal(output.scores, numbered(13).sum(axis=(2, 3)))
    engine.batches.clear()
    engine.infer(numbered(7))
    assert engine.batches == [3, 3, 1]


def test_what_is_remembered_is_pixels_so_that_small_images_go_on_in_large_batches() -> None:
    engine = SmallDevice(pixels=4 * 1024)
    engine.infer(numbered(8, 32, 32))
    assert engine.batches == [8, 4, 4]
    engine.batches.clear()
    engine.infer(numbered(16, 16, 16))
    assert engine.batches == [16]
    engine.batches.clear()
    engine.infer(numbered(3, 64, 64))
    assert engine.batches == [1, 1, 1]


def test_a_single_image_that_is_too_large_is_its_own_failure() -> None:
    engine = SmallDevice(pixels=4 * 256)
    with pytest.raises(ImageError) as caught:
        engine.infer(numbered(1, 64, 64))
    assert caught.value.code == "out_of_memory" and engine.batches == [1]
    assert engine.infer(numbered(4)).maps.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_after_an_illegal_access_nothing_is_tried_again(call: int) -> None:
    engine = SmallDevice(pixels=3 * 256)
    engine.error = call, RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(WsssError) as caught:
        engine.infer(numbered(12))
    assert caught.value.code == "device_lost" and len(engine.batches) == call


def test_another_error_is_not_taken_for_memory() -> None:
    engine = SmallDevice(pixels=3 * 256)
    engine.error = 1, RuntimeError("no kernel image is available for execution on the device")
    with pytest.raises(ImageError) as caught:
        engine.infer(numbered(8))
    assert caught.value.code == "engine" and engine.batches == [8]
