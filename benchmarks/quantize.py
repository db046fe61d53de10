"""int8 beside float32 and bfloat16: mIoU on scenes with the embedded model, and time, also of a DeiT-S.

    python benchmarks/quantize.py [--part NAME|all] [--work DIR] [--count 300]

Parts leave their results in the work folder, so that the ones that measure wall time can run alone on a
quiet machine; what is there is stored. ``processor`` is the processor's time for a pass on one thread, which
neighbours lengthen a little and do not stop. Quality goes the way of a user: `wsss-rt export`,
`label` with tags given and no CRF, `eval`; time is that of `wsss-rt bench`, which measures in turns.
DeiT-S is MCTformer-V2 with seeded weights at 375x500 px: its masks mean nothing, only its time does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from commands import wsss_rt
from record import write_result

PARTS = ("export", "quality", "processor", "speed-scenes-v2", "speed-deit-s", "kernels")
# without these there is no table; the others want a quiet machine
NEEDED = ("export", "quality", "processor")
# backend, precision as asked for, whether of the quantised file
RUNS = {
    "onnxruntime float32": ("onnxruntime", "float32", False),
    "openvino bfloat16": ("openvino", "bfloat16", False),
    "onnxruntime int8": ("onnxruntime", "int8", True),
    "openvino int8": ("openvino", "int8", True),
    "openvino int8+bfloat16": ("openvino", "bfloat16", True),
}
ALSO_TIMED = {"openvino float32": ("openvino", "float32", False)}
DEIT_SIZE = (375, 500)


# as --models says
CHOSEN = ["scenes-v2", "deit-s"]


def models(work: Path) -> dict[str, tuple[Path, Path]]:
    """By name, a float32 model and where its int8 is."""
    from wsss_rt.assets import find_model

    found = {
        "scenes-v2": (find_model(None), work / "scenes-int8.onnx"),
        "deit-s": (work / "deit.onnx", work / "deit-int8.onnx"),
    }
    return {name: found[name] for name in CHOSEN}


def earlier(work: Path, part: str) -> dict[str, Any]:
    """What a part found of other models."""
    file = work / f"part-{part}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def export(work: Path) -> dict[str, Any]:
    """Quantise both; the embedded one through the gate, the seeded one without."""
    from wsss_rt.model_card import read_card

    found = earlier(work, "export")
    for name, (whole, int8) in models(work).items():
        if name == "deit-s" and not whole.exists():
            _seeded(whole)
        words = ["export", whole, "--precision", "int8", "--calibrate", "scenes", "--out", int8]
        if not int8.exists():
            wsss_rt(*words, *(["--skip-parity"] if name == "deit-s" else []))
        card = read_card(int8)
        made = {key: value for key, value in card.options["quantized"].items() if key != "from"}
        found[name] = {
            **made,
            "bytes": int8.stat().st_size,
            "bytes_float32": whole.stat().st_size,
            "gate": card.quality["int8"],
        }
    return found


def _seeded(out: Path) -> None:
    import torch
    from pipeline.compare import seeded_state

    from wsss_rt.training.models import create_model, official_shapes

    shapes = official_shapes(create_model("mctformer-v2", num_classes=20, img_size=224))
    state = out.with_suffix(".pth")
    torch.save(seeded_state(shapes), state)
    wsss_rt(
        "export", state, "--official", "--method", "mctformer-v2", "--classes", "voc", "--layers-fused", 3,
        "--skip-parity", "--out", out,
    )  # fmt: skip


def quality(work: Path, *, count: int, seed: int) -> dict[str, Any]:
    """mIoU of the embedded model's masks in every precision."""
    scenes = work / f"scenes-{seed}-{count}"
    wsss_rt("scenes", "--out", scenes, "--count", count, "--seed", seed)
    whole, int8 = models(work)["scenes-v2"]
    found = {}
    for name, (backend, precision, quantised) in RUNS.items():
        # the gate has compared int8 in both libraries already
        if name == "onnxruntime int8":
            continue
        out = work / f"labels-{name.replace(' ', '-')}"
        result = out.with_suffix(".json")
        if not result.exists():
            wsss_rt(
                "label", scenes / "JPEGImages", "--out", out, "--model", int8 if quantised else whole,
                "--backend", backend, "--precision", precision, "--tags", scenes / "labels.csv",
                "--format", "png", "--quiet",
            )  # fmt: skip
            wsss_rt("eval", out, scenes / "SegmentationClass", "--classes", "scenes", "--json", result)
        found[name] = json.loads(result.read_text())["miou"]
    return {"count": count, "seed": seed, "miou": found}


def processor(work: Path) -> dict[str, Any]:
    """Processor milliseconds of a pass on one thread, engines in turns."""
    import time

    import numpy as np

    from wsss_rt.benchmark.inputs import default_size
    from wsss_rt.engines import open_engine
    from wsss_rt.model_card import read_card

    found = earlier(work, "processor")
    for name, (whole, int8) in models(work).items():
        if not int8.exists():
            continue
        size = DEIT_SIZE if name == "deit-s" else default_size(read_card(whole).input)
        images = np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)
        engines = {
            run: open_engine(
                int8 if quantised else whole,
                backend=backend,
                precision=precision,
                threads=1,
                cache=False,
                gate=False,
            )
            for run, (backend, precision, quantised) in {**RUNS, **ALSO_TIMED}.items()
        }
        times: dict[str, list[float]] = {run: [] for run in engines}
        for turn in range(6 if name == "deit-s" else 30):
            for run, engine in engines.items():
                started = time.process_time()
                engine.infer(images)
                if turn:
                    times[run].append(1e3 * (time.process_time() - started))
        found[name] = {
            "size": list(size),
            "median_ms": {run: round(float(np.median(values)), 2) for run, values in times.items()},
            "least_ms": {run: round(min(values), 2) for run, values in times.items()},
            "turns": len(next(iter(times.values()))),
        }
    return found


def speed(name: str, work: Path) -> dict[str, Any]:
    """Time of the model alone on two images, as an image and its mirror image are, by ``wsss-rt bench``."""
    whole, int8 = models(work)[name]
    out = work / f"bench-{name}.json"
    size = ["--size", "x".join(map(str, DEIT_SIZE))] if name == "deit-s" else []
    size += ["--batch", "2"]
    wsss_rt(
        "bench", whole, "--quantized", int8, "--scope", "model", "--seconds", 5, "--json", out, *size
    )  # fmt: skip
    report = json.loads(out.read_text())
    agreement = {engine["name"]: engine["agreement"] for engine in report["engines"]}
    return {
        "size": report["rows"][0]["size"],
        "load_before": report["machine"]["load_before"],
        "skipped": report["skipped"],
        "rows": [
            {
                "engine": row["engine"],
                "ms": {key: row["milliseconds"][key] for key in ("count", "p50", "p90", "mean")},
                "masks_equal": 1 - agreement[row["engine"]]["masks"]["mean"],
                "map_error_mean": agreement[row["engine"]]["maps"]["mean"],
                "agrees": row["agrees"],
            }
            for row in report["rows"]
        ],
    }


def kernels(work: Path) -> dict[str, Any]:
    """What OpenVINO really runs: by kind of node and precision, their number and their share of the time."""
    import numpy as np
    import openvino

    from wsss_rt.benchmark.inputs import default_size
    from wsss_rt.engines import amx
    from wsss_rt.engines.openvino import shared_core
    from wsss_rt.engines.runtime import default_threads
    from wsss_rt.model_card import read_artifact

    if (why := amx.refusal()) is not None:
        raise SystemExit(f"bfloat16 runs otherwise here: {why}")
    from wsss_rt.engines.amx.attention import warm_up
    from wsss_rt.engines.openvino_attention import AttentionCrews, use_tiles

    # the library's times of a node are means over all its runs, the first among them
    warm_up()
    found: dict[str, Any] = {}
    for name, (whole, int8) in models(work).items():
        for file, hint, label in (
            (whole, "bf16", "openvino bfloat16"),
            (int8, "f32", "openvino int8"),
            (int8, "bf16", "openvino int8+bfloat16"),
        ):
            card, data = read_artifact(file)
            size = DEIT_SIZE if name == "deit-s" else default_size(card.input)
            images = np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)
            core = shared_core()
            graph = core.read_model(model=data, weights=b"")
            # as the engine does in bfloat16; nodes of its own are "Reference" to the library
            tiles = use_tiles(graph, AttentionCrews(default_threads())) if hint == "bf16" else []
            compiled: openvino.CompiledModel = core.compile_model(
                graph,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": hint,
                    "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_NUM_THREADS": default_threads(),
                    "ENABLE_CPU_PINNING": False,
                    "PERF_COUNT": True,
                },
            )
            request = compiled.create_infer_request()
            times: defaultdict[str, float] = defaultdict(float)
            for run in range(12):
                request.infer({0: images})
                for node in request.profiling_info if run > 3 else ():
                    times[node.node_name] += node.real_time.total_seconds() * 1e3 / 8
            kinds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
            for node in compiled.get_runtime_model().get_ops():
                info = node.get_rt_info()
                if "layerType" in info and times.get(node.get_friendly_name(), 0) > 0:
                    key = (info["layerType"].astype(str), info["runtimePrecision"].astype(str))
                    kinds[key].append(times[node.get_friendly_name()])
            del tiles
            found.setdefault(name, {})[label] = [
                {"kind": kind, "precision": precision, "nodes": len(ms), "ms": round(sum(ms), 3)}
                for (kind, precision), ms in sorted(kinds.items(), key=lambda entry: -sum(entry[1]))
            ]
    return found


def main() -> None:
    """Measure what was asked for, and store the whole once all parts are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--work", type=Path, default=Path("quantize-work"))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=424242)
    parser.add_argument("--models", nargs="+", choices=tuple(CHOSEN), default=list(CHOSEN))
    options = parser.parse_args()
    CHOSEN[:] = options.models
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    run = {
        "export": lambda: export(work),
        "quality": lambda: quality(work, count=options.count, seed=options.seed),
        "processor": lambda: processor(work),
        "speed-scenes-v2": lambda: speed("scenes-v2", work),
        "speed-deit-s": lambda: speed("deit-s", work),
        "kernels": lambda: kernels(work),
    }
    for part in PARTS if options.part == "all" else (options.part,):
        (work / f"part-{part}.json").write_text(json.dumps(run[part](), indent=1))
    files = {part: work / f"part-{part}.json" for part in PARTS}
    missing = [part for part in NEEDED if not files[part].exists()]
    if missing:
        print(f"not yet measured: {', '.join(missing)}")
        return
    result = {part: json.loads(file.read_text()) for part, file in files.items() if file.exists()}
    print(f"wrote {write_result('quantize', result)}")


if __name__ == "__main__":
    main()
