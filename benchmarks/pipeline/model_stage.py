"""The model alone: FLOP/s on an image and its mirror image, beside plain matrix products of the engine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.engines.base import Engine

ROUNDS = 9
# of a round and engine: the model, and the products after it
SECONDS = (0.6, 0.3)


def deit_small_flops(tokens: int, *, classes: int = 20, width: int = 384, layers: int = 12) -> int:
    """What MCTformer-V2 on DeiT-S has to compute for one view, two FLOPs for a multiply-accumulate.

    Products and convolutions that the method needs, each once: what a graph computes a second time to keep
    attention out of memory is no achievement and does not count.

    Args:
        tokens: class tokens and patches.
        classes: C.
        width: of a token.
        layers: of the transformer.
    """
    patches = tokens - classes
    embedding = patches * 3 * 16 * 16 * width
    # qkv, projection, and an MLP of four times the width; then q k^T and the weighted sum of values
    layer = tokens * 12 * width * width + 2 * tokens * tokens * width
    head = patches * 9 * width * classes
    refinement = patches * patches * classes
    return 2 * (embedding + layers * layer + head + refinement)


def measure_model(
    engines: Mapping[str, Engine], pairs: Sequence[NDArray[np.float32]], flops: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Per engine: milliseconds of a pair, FLOP/s, FLOP/s of plain products, and their ratio.

    The model and the products take turns, so that a neighbour's load falls on both; medians over the rounds
    of the ratio, and over all calls of the time.

    Args:
        engines: open, by name.
        pairs: (2, 3, H, W) normalised, an image and its mirror image.
        flops: of both images of a pair.
    """
    from wsss_rt.benchmark.ceilings import product_rate

    found: dict[str, dict[str, list[float]]] = {
        name: {"ms": [], "rate": [], "products": []} for name in engines
    }
    for engine in engines.values():
        for pair in pairs:
            engine.infer(pair)
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            times: list[float] = []
            done = 0
            while sum(times) < SECONDS[0]:
                which = len(times) % len(pairs)
                started = time.perf_counter()
                engine.infer(pairs[which])
                times.append(time.perf_counter() - started)
                done += flops[which]
            entry = found[name]
            entry["ms"] += [1e3 * value for value in times]
            entry["rate"].append(done / sum(times))
            entry["products"].append(product_rate(engine, seconds=SECONDS[1]))
    return {name: _summary(entry) for name, entry in found.items()}


def _summary(entry: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    ratios = [rate / most for rate, most in zip(entry["rate"], entry["products"], strict=True)]
    return {
        "calls": len(entry["ms"]),
        "ms_of_a_pair": median(entry["ms"]),
        "flops_per_second": median(entry["rate"]),
        "product_flops_per_second": median(entry["products"]),
        "share_of_products": median(ratios),
        "shares_of_products": ratios,
    }
