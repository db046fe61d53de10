"""The CRF over sizes and numbers of classes, beside pydensecrf where it is installed.

    pytest benchmarks/refine/test_sizes.py --benchmark-group-by=param:size,param:classes

``sizes.py`` runs this and keeps the figures.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from wsss_rt.refine import pydensecrf_backend
from wsss_rt.refine.dense_crf import dense_crf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from refine.inputs import PHOTOGRAPHS, photographs, scenes  # noqa: E402

SIZES = ((240, 320), (375, 500), (750, 1000), (1500, 2000), (3000, 4000))
MOST_VALUES = 40_000_000
CALLS = {
    "numba, 1 thread": lambda image, given: dense_crf(image, given),
    "numba, 2 threads": lambda image, given: dense_crf(image, given, threads=2),
    "pydensecrf": lambda image, given: pydensecrf_backend.dense_crf(image, given),
}


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """A photograph where there are any, else a scene."""
    samples = photographs(PHOTOGRAPHS, 1, fine=True) if PHOTOGRAPHS.is_dir() else scenes(1)
    return next(iter(samples))[1]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("classes", [2, 4, 21])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[1]}x{size[0]}")
def test_dense_crf(
    benchmark: Any, picture: NDArray[np.uint8], size: tuple[int, int], classes: int, call: str
) -> None:
    """One image; agreement of the labels stands in ``extra_info``."""
    if call == "pydensecrf" and importlib.util.find_spec("pydensecrf") is None:
        pytest.skip("needs the extra crf-reference")
    pixels = size[0] * size[1]
    if classes * pixels > MOST_VALUES:
        pytest.skip("its memory is what benchmarks/refine/large.py measures")
    image = cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    rng = np.random.default_rng(0)
    given = np.stack(
        [cv2.resize(rng.random((24, 32), np.float32), (size[1], size[0])) for _ in range(classes)]
    )
    plain = dense_crf(image, given).argmax(axis=0)
    found = benchmark.pedantic(
        CALLS[call], args=(image, given), rounds=5 if pixels < 10**6 else 2, iterations=1
    )
    benchmark.extra_info["labels_equal"] = float((found.argmax(axis=0) == plain).mean())
    assert benchmark.extra_info["labels_equal"] >= 0.9999
