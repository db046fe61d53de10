"""Checks and times every kernel on a GPU in one call, and writes ``benchmarks/results/kernels-gpu.json``.

    python benchmarks/kernels/gpu.py [--repeat 50] [--quick] [--name kernels-gpu]

Every time stands beside its parity, judged before anything is timed; a kernel that fails it is not timed.
Rates are given beside what a large matrix product and a large copy reach in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
from record import write_result  # noqa: E402

from benchmarks.kernels import aggregate, propagate, reattend  # noqa: E402
from benchmarks.kernels.parity import Verdict, packed_heads  # noqa: E402
from wsss_rt.kernels import last_path, use_kernels  # noqa: E402
from wsss_rt.kernels.affinity_propagate import Problem, affinity_propagate, choose_form  # noqa: E402
from wsss_rt.kernels.attention_aggregate import attention_aggregate  # noqa: E402
from wsss_rt.kernels.attention_aggregate import reference as aggregate_reference  # noqa: E402
from wsss_rt.kernels.masked_reattention import masked_reattention  # noqa: E402
from wsss_rt.training.models import create_model  # noqa: E402

CLASSES, LAYERS, DIM = 20, 12, 64
# images of 224, of 500x375 and of 768x768 px, with 20 class tokens; DeiT-S and ViT-B
SIZES, HEADS = ((64, 216), (16, 733), (4, 2324)), (6, 12)
TYPES = (torch.bfloat16, torch.float16, torch.float32)
_GIB = 1 << 30


def parity_of_all(device: str, *, small: bool) -> list[Verdict]:
    """Verdicts on all kernels; ``small`` for the interpreter."""
    found: list[Verdict] = []
    shapes = ((1, 2, 37),) if small else tuple((2, 6, tokens) for _, tokens in SIZES)
    for dtype in TYPES:
        for batch, heads, tokens in shapes:
            for classes in (1, CLASSES):
                found += aggregate.parity(batch, heads, tokens, DIM, classes, dtype, device=device)
            found += reattend.parity(batch, heads, tokens - 1, DIM, dtype, device=device)
            shape = (batch, heads, tokens, DIM)
            found += propagate.parity(1 if small else 3, shape, CLASSES, CLASSES, dtype, device=device)
    return found


def median_ms(work: Callable[[], Any], repeat: int) -> float:
    """Median of single runs by CUDA events, after three that do not count."""
    for _ in range(3):
        work()
    times = []
    for _ in range(repeat):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def peak_gib(work: Callable[[], Any]) -> float:
    """Memory that a run takes beyond what is there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / _GIB


def measured(work: Callable[[], Any], repeat: int) -> dict[str, float] | str:
    """Time and memory, or that it did not fit."""
    try:
        return {"ms": round(median_ms(work, repeat), 4), "peak_gib": round(peak_gib(work), 3)}
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"


def ceilings(repeat: int) -> dict[str, float]:
    """What this card reaches: TFLOP/s of a bf16 product, GB/s of a copy."""
    side = 8192
    left, right = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = median_ms(lambda: left @ right, repeat)
    source = torch.empty(1 << 28, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    copy = median_ms(lambda: target.copy_(source), repeat)
    return {
        "tflops": round(2 * side**3 / product / 1e9, 1),
        "gbs": round(2 * source.numel() * 4 / copy / 1e6, 1),
    }


def time_aggregate(batch: int, tokens: int, heads: int, repeat: int) -> dict[str, Any]:
    """One layer with both maps, with class rows alone, and the ways to do without the kernel."""
    parts = packed_heads(batch, heads, tokens, DIM, torch.bfloat16, device="cuda")
    class_map, affinity = aggregate.accumulators(parts[0], CLASSES, (True, True))
    scale = DIM**-0.5

    def eager() -> torch.Tensor:
        return aggregate_reference.attention_aggregate(
            *parts, CLASSES, class_map, affinity, scale=scale, upcast=False
        )

    def kernel(*maps: torch.Tensor | None) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with use_kernels("triton"):
                return attention_aggregate(*parts, CLASSES, *maps)

        return run

    patches = tokens - CLASSES
    row: dict[str, Any] = {
        "triton": measured(kernel(class_map, affinity), repeat),
        "triton, class rows": measured(kernel(class_map, None), repeat),
        "triton, no maps": measured(kernel(None, None), repeat),
        "eager": measured(eager, repeat),
        "compiled": measured(torch.compile(eager), repeat),
        "sdpa, no maps": measured(lambda: functional.scaled_dot_product_attention(*parts), repeat),
    }
    if isinstance(row["triton"], dict):
        flops = 2 * batch * heads * DIM * (2 * tokens**2 + patches**2 + CLASSES * patches)
        moved = 2 * 4 * batch * patches * tokens + 2 * 4 * batch * heads * tokens * DIM
        row["triton"]["tflops"] = round(flops / row["triton"]["ms"] / 1e9, 1)
        row["triton"]["gbs"] = round(moved / row["triton"]["ms"] / 1e6, 1)
    return row


def time_propagate(batch: int, tokens: int, heads: int, repeat: int) -> dict[str, Any]:
    """Both forms over all layers, beside what the counts choose."""
    shape = (batch, heads, tokens, DIM)
    queries, keys = propagate.layers_of(LAYERS, shape, torch.bfloat16, device="cuda")
    maps = propagate.maps_for(batch, CLASSES, tokens - CLASSES, device="cuda")

    def streaming() -> torch.Tensor:
        with use_kernels("triton"):
            return affinity_propagate(queries, keys, maps, CLASSES)

    def accumulated() -> torch.Tensor:
        total = torch.zeros(batch, tokens - CLASSES, tokens - CLASSES, device="cuda")
        with use_kernels("triton"):
            for q, k in zip(queries, keys, strict=True):
                attention_aggregate(q, k, k, CLASSES, None, total)
        return maps @ total.transpose(-2, -1)

    def attention_alone() -> None:
        with use_kernels("triton"):
            for q, k in zip(queries, keys, strict=True):
                attention_aggregate(q, k, k, CLASSES)

    problem = Problem(batch, heads, tokens, CLASSES, CLASSES, LAYERS, DIM, 2)
    return {
        "streaming": measured(streaming, repeat),
        "accumulated, attention included": measured(accumulated, repeat),
        "attention alone": measured(attention_alone, repeat),
        "chosen": choose_form(problem),
    }


def time_reattend(batch: int, tokens: int, heads: int, repeat: int) -> dict[str, Any]:
    """The masked attention, beside PyTorch's."""
    parts = packed_heads(batch, heads, tokens, DIM, torch.bfloat16, device="cuda")
    selected = reattend.chosen(batch, tokens, 0.4, device="cuda")
    row = {}
    for mode in ("triton", "reference"):

        def run(mode: str = mode) -> torch.Tensor:
            with use_kernels(mode):
                return masked_reattention(*parts, selected, scale=DIM**-0.5)

        row[mode] = measured(run, repeat)
    return row


@torch.no_grad()
def time_model(model: Any, images: torch.Tensor, repeat: int) -> dict[str, Any]:
    """``localize`` of a batch in bf16, kernels on and off, and how far the maps are apart."""
    maps: dict[str, torch.Tensor] = {}
    row: dict[str, Any] = {"batch": images.shape[0]}
    for mode in ("triton", "reference"):

        def run(mode: str = mode) -> torch.Tensor:
            with use_kernels(mode), torch.autocast("cuda", torch.bfloat16):
                return model.localize(images).maps

        row[mode] = measured(run, repeat)
        if isinstance(row[mode], dict):
            maps[mode] = run()
            row[mode]["path"] = last_path("attention_aggregate")
    if len(maps) == 2:
        apart = (maps["triton"] - maps["reference"]).abs().max()
        row["maps_apart"] = float(apart / maps["reference"].abs().max())
    return row


def time_models(sides: tuple[int, ...], repeat: int) -> dict[str, Any]:
    """Whole models at several image sizes."""
    rows: dict[str, Any] = {}
    for method in ("mctformer-v2", "token-refinement"):
        model = create_model(method, num_classes=CLASSES).cuda().eval()
        for side in sides:
            images = torch.randn(max(1, 16 * 224**2 // side**2), 3, side, side, device="cuda")
            rows[f"{method}, {side} px"] = time_model(model, images, max(3, repeat // 10))
    return rows


def main() -> None:
    """Check, time, store; ends with 1 where a kernel fails its parity."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="parity and the smallest size only")
    parser.add_argument("--name", default="kernels-gpu")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU; the parity part runs in tests/kernels, in Triton's interpreter")
    verdicts = parity_of_all("cuda", small=False)
    failed = [verdict for verdict in verdicts if not verdict.passed]
    print(f"parity: {len(verdicts) - len(failed)} of {len(verdicts)} passed", *failed, sep="\n", flush=True)
    result: dict[str, Any] = {"parity": [verdict.as_dict() for verdict in verdicts]}
    lost = {verdict.case.split()[0] for verdict in failed}
    sizes = SIZES[:1] if options.quick else SIZES
    timings = {"aggregate": time_aggregate, "propagate": time_propagate, "reattend": time_reattend}
    result["device"] = torch.cuda.get_device_name()
    result["ceilings"] = ceilings(options.repeat)
    for kernel, measure in timings.items():
        if kernel in lost or (kernel == "propagate" and "aggregate" in lost):
            continue
        result[kernel] = {}
        for batch, tokens in sizes:
            for heads in HEADS:
                row = measure(batch, tokens, heads, options.repeat)
                result[kernel][f"B{batch}-T{tokens}-H{heads}"] = row
                print(kernel, batch, tokens, heads, row, flush=True)
    if not failed:
        result["models"] = time_models((224,) if options.quick else (224, 512, 1536), options.repeat)
    print(f"wrote {write_result(options.name, result)}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
