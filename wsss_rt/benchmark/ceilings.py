"""What this machine can do at most right now: matrix products in an engine, and copying memory."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from wsss_rt.benchmark.product_model import FLOPS, ROWS, SIDE, product_model
from wsss_rt.engines import open_engine

if TYPE_CHECKING:
    from wsss_rt.engines.base import Engine

# far more than a core's own caches hold
_COPY_BYTES = 128 * 2**20
_COPIES = 6


def product_rate(engine: Engine, *, seconds: float, least: int = 3) -> float:
    """FLOP/s of the fastest of several passes of products of (512, 1024) by (1024, 1024).

    They run through an engine of the same library, in the same precision, with the same threads and options
    as the model does.

    Args:
        engine: whose twin multiplies.
        seconds: to go on for.
        least: passes, however long they take.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="wsss-rt-bench-") as folder:
        path = Path(folder) / "products.onnx"
        path.write_bytes(product_model())
        twin = open_engine(
            path,
            backend=engine.backend,
            device=engine.device.split(":")[0],
            precision=engine.precision,
            threads=engine.choice.get("threads"),
            cache=False,
            # there is nothing to see in products
            gate=False,
        )
    # an engine that runs several images at once does so here
    lanes: int = getattr(twin, "lanes", 1)
    images = np.random.default_rng(1).standard_normal((lanes, 3, ROWS, SIDE), dtype=np.float32)
    twin.infer(images)
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        started = time.perf_counter()
        twin.infer(images)
        times.append(time.perf_counter() - started)
    twin.close()
    return lanes * FLOPS / min(times)


def copy_rate(threads: int) -> float:
    """Bytes per second that the fastest of several copies read and wrote, all threads together."""
    import numpy as np

    share = _COPY_BYTES // threads
    pairs = [(np.ones(share, np.uint8), np.zeros(share, np.uint8)) for _ in range(threads)]
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_COPIES):
            started = time.perf_counter()
            # numpy releases the interpreter's lock while it copies
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
            times.append(time.perf_counter() - started)
    return 2 * share * threads / min(times)
