"""The embedded model in every engine and precision that runs here.

    pytest benchmarks/engines --benchmark-group-by=param:batch

What `wsss-rt bench` measures with ceilings and agreement; here for a look while something is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from wsss_rt.assets import find_model
from wsss_rt.benchmark.subjects import wanted
from wsss_rt.engines import open_engine
from wsss_rt.engines.base import Engine
from wsss_rt.errors import WsssError
from wsss_rt.localize import prepare_passes
from wsss_rt.parity import LIMITS
from wsss_rt.scenes import render_scene


@pytest.fixture(scope="module", params=wanted((), (), scope="model"), ids=" ".join)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine, open once."""
    backend, precision = request.param
    try:
        opened = open_engine(find_model(None), backend=backend, precision=precision, cache=False)
    except WsssError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_infer(benchmark: Any, engine: Engine, batch: int) -> None:
    """Views of one scene; the maps' largest error stands in ``extra_info``."""
    pair = prepare_passes(render_scene(1, 1).image, engine.card.input)[0].images
    images = np.concatenate([pair] * 4)[:batch]
    found = benchmark.pedantic(engine.infer, args=(images,), rounds=10, warmup_rounds=2, iterations=1)
    reference = open_engine(find_model(None), backend="onnxruntime", precision="float32", cache=False)
    expected = reference.infer(images)
    reference.close()
    error = float(np.abs(found.maps - expected.maps).max() / np.abs(expected.maps).max())
    benchmark.extra_info |= {"map_error": error, "images_per_call": batch}
    assert error <= LIMITS[engine.precision].maps
