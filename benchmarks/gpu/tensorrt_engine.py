"""Builds, checks and times TensorRT on a GPU in one call, into ``benchmarks/results/tensorrt-gpu.json``.

    python benchmarks/gpu/tensorrt_engine.py [--model FILE.onnx] [--quick]

Each precision's plan is built (or taken from the cache), held against float32 ONNX Runtime, and timed only if
it passes: one image at a time, and in batches. Times are given as a caller sees them, with copies, and as the
GPU does, by events around the launches. Rates stand beside what a chain of matrix products reaches in a plan
of the same precision in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

# the script's own folder goes: what lies in it must not be taken for a library
sys.path[:1] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
from record import write_result  # noqa: E402

from wsss_rt.assets import embedded_models  # noqa: E402
from wsss_rt.benchmark.flops import count_pass  # noqa: E402
from wsss_rt.benchmark.product_model import FLOPS, ROWS, SIDE, product_model  # noqa: E402
from wsss_rt.engines import open_engine  # noqa: E402
from wsss_rt.engines.cuda import Gpu  # noqa: E402
from wsss_rt.engines.tensorrt import TensorRtEngine  # noqa: E402
from wsss_rt.engines.tensorrt_library import library  # noqa: E402
from wsss_rt.engines.tensorrt_plan import PRECISIONS  # noqa: E402
from wsss_rt.errors import ImageError, WsssError  # noqa: E402
from wsss_rt.model_card import read_artifact  # noqa: E402

SIZES = ((224, 224), (384, 512))
BATCHES = (1, 2, 4, 8, 16, 32)
_PRODUCT_BATCH = 16


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="an exported model; the embedded one by default")
    parser.add_argument("--precisions", type=_names, default=PRECISIONS, help="separated by commas")
    parser.add_argument("--sizes", type=_sizes, default=SIZES, help="HEIGHTxWIDTH, separated by commas")
    parser.add_argument("--batches", type=_numbers, default=BATCHES, help="separated by commas")
    parser.add_argument("--repeat", type=int, default=100, help="runs of a row that count")
    parser.add_argument("--quick", action="store_true", help="float16, the first size, three batches")
    parser.add_argument("--name", default="tensorrt-gpu", help="of the result")
    options = parser.parse_args(words)
    if options.quick:
        options.precisions, options.sizes = options.precisions[:1], options.sizes[:1]
        options.batches, options.repeat = options.batches[:3], min(options.repeat, 20)
    return options


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in PRECISIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PRECISIONS)}")
    return names


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    sizes = []
    for part in text.split(","):
        height, cross, width = part.partition("x")
        if not (cross and height.isdecimal() and width.isdecimal()):
            raise argparse.ArgumentTypeError(f"{part!r} is not HEIGHTxWIDTH")
        sizes.append((int(height), int(width)))
    return tuple(sizes)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers") from error
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("batches are at least 1")
    return numbers


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, by precision.

    Raises:
        UsageError: no GPU, no pycuda, no TensorRT.
    """
    gpu = Gpu()
    trt = library()
    model = options.model or next(iter(embedded_models().values()))
    card, data = read_artifact(model)
    flops = {size: count_pass(data, card, size).flops for size in options.sizes}
    result: dict[str, Any] = {
        "model": {"method": card.method, "classes": len(card.classes), "sha256": card.weights_sha256},
        "gpu": {"name": gpu.name, "compute_capability": gpu.compute_capability, "bytes": gpu.memory},
        "tensorrt": str(trt.__version__),
        "precisions": {},
    }
    for precision in options.precisions:
        print(f"{precision}:", flush=True)
        result["precisions"][precision] = _precision(model, precision, options, flops)
    return result


def _precision(
    model: Path, precision: str, options: argparse.Namespace, flops: dict[tuple[int, int], int]
) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        engine = _opened(model, precision)
    except WsssError as error:
        # a precision that the gate refuses is a result too
        print(f"  refused: {error}", flush=True)
        return {"refused": str(error), "code": error.code}
    ceiling = _ceiling(precision, options.repeat)
    found: dict[str, Any] = {
        "open_seconds": round(time.perf_counter() - started, 2),
        "plan_built": engine.choice["plan"]["built"],
        "parity": engine.choice["parity"],
        "ceiling_tflops": round(ceiling / 1e12, 2),
        "rows": [],
    }
    for size in options.sizes:
        for batch in options.batches:
            row = _row(engine, batch, size, options.repeat)
            if "device_ms" in row:
                rate = flops[size] * batch / row["device_ms"] * 1e3
                row |= {"tflops": round(rate / 1e12, 3), "of_ceiling": round(rate / ceiling, 4)}
            found["rows"].append(row)
            print(f"  {row}", flush=True)
    found["graphs_unused"] = engine.graphs_unused()
    found["best"] = _best(found["rows"])
    engine.close()
    return found


def _opened(model: Path, precision: str, *, gate: bool = True) -> TensorRtEngine:
    engine = open_engine(model, backend="tensorrt", precision=precision, gate=gate, tell=print)
    assert isinstance(engine, TensorRtEngine)
    return engine


def _ceiling(precision: str, repeat: int) -> float:
    """FLOP/s of matrix products in a plan of this precision, on the GPU's clock."""
    with tempfile.TemporaryDirectory(prefix="wsss-rt-bench-") as folder:
        path = Path(folder) / "products.onnx"
        path.write_bytes(product_model())
        engine = _opened(path, precision, gate=False)
    images = np.zeros((_PRODUCT_BATCH, 3, ROWS, SIDE), np.float32)
    seconds = min(engine.time_device(images, repeat))
    engine.close()
    return FLOPS * _PRODUCT_BATCH / seconds


def _row(engine: TensorRtEngine, batch: int, size: tuple[int, int], repeat: int) -> dict[str, Any]:
    """One batch size: milliseconds of a call and of the GPU, images/s of one and of two callers."""
    row: dict[str, Any] = {"size": f"{size[0]}x{size[1]}", "batch": batch}
    images = np.random.default_rng(batch).standard_normal((batch, 3, *size), dtype=np.float32)
    try:
        for _ in range(4):
            engine.run(images)
        times = []
        for _ in range(repeat):
            started = time.perf_counter()
            engine.run(images)
            times.append(1000 * (time.perf_counter() - started))
        row["device_ms"] = round(1000 * statistics.median(engine.time_device(images, repeat)), 4)
        row["two_callers_images_s"] = round(_two_callers(engine, images, repeat), 1)
    except (ImageError, ValueError) as error:
        return row | {"refused": str(error)}
    cuts = np.percentile(times, (50, 90, 99))
    row |= {f"p{cut}_ms": round(float(value), 4) for cut, value in zip((50, 90, 99), cuts, strict=True)}
    return row | {
        "mean_ms": round(statistics.fmean(times), 4),
        "images_s": round(1000 * batch / statistics.fmean(times), 1),
    }


def _two_callers(engine: TensorRtEngine, images: np.ndarray, repeat: int) -> float:
    """Images per second when one batch is copied while another is computed."""
    with ThreadPoolExecutor(2) as pool:
        started = time.perf_counter()
        list(pool.map(engine.run, [images] * repeat))
        return len(images) * repeat / (time.perf_counter() - started)


def _best(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By size: latency of one image, and the batch with the most images per second."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "images_s" not in row:
            continue
        entry = best.setdefault(row["size"], {"images_s": 0.0})
        if row["batch"] == 1:
            entry["latency_ms"] = {name: row[name] for name in ("p50_ms", "p90_ms", "p99_ms", "device_ms")}
        for callers in ("images_s", "two_callers_images_s"):
            if row[callers] > entry["images_s"]:
                entry |= {"images_s": row[callers], "batch": row["batch"]}
    return best


def main(words: Sequence[str] | None = None) -> None:
    """Measure and store; ends with 1 where there is no GPU or where no precision passes."""
    options = arguments(words)
    try:
        result = measure(options)
    except WsssError as error:
        sys.exit(str(error))
    print(f"wrote {write_result(options.name, result)}")
    if all("refused" in entry for entry in result["precisions"].values()):
        sys.exit("no precision passed its parity check")


if __name__ == "__main__":
    main()
