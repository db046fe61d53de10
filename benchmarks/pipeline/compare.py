"""`wsss-rt label` beside the peer of peer.py, on the same photographs, in one run.

    python benchmarks/pipeline/compare.py --images VOC/JPEGImages --tags VOC/labels.csv [--count 20]

MCTformer-V2 on DeiT-S with 20 classes, K = 3 and seeded weights; native size, scale 1 and mirror image, tags
given, a CRF with the same parameters on both sides. The two work in turns, a few photographs each, so that a
neighbour's load falls on both. Both start warm: what is timed is images, not imports.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from commands import wsss_rt
from record import write_result

# labelled by one side before the other takes its turn
SLICE = 5
SCALE = 0.08  # of the seeded weights; with smaller ones all maps are alike
PRECISIONS = ("float32", "bfloat16")


def seeded_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A state dict whose values depend on nothing but each key."""
    import torch

    state = {}
    for key, shape in shapes.items():
        generator = np.random.default_rng(zlib.crc32(key.encode()))
        values = generator.standard_normal(shape, dtype=np.float32) * np.float32(SCALE)
        if key.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
            values += np.float32(1)
        state[key] = torch.from_numpy(values)
    return state


def equal_pixels(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    """Share of the pixels on which two masks agree; masks of different sizes are an error."""
    if first.shape != second.shape:
        raise ValueError(f"masks of {first.shape} and {second.shape}")
    return float((first == second).mean())


def summary(rows: Sequence[Mapping[str, Any]], side: str, peer: str = "peer") -> dict[str, float]:
    """Images per second of one side and of the peer in the same turns, their ratio, and equal pixels.

    Args:
        rows: one per turn: ``images``, ``seconds`` by side, and ``equal`` by side, a list of shares.
        side: name of the side.
        peer: name of the peer.
    """
    images = sum(row["images"] for row in rows)
    own, other = (sum(row["seconds"][name] for row in rows) for name in (side, peer))
    shares = [share for row in rows for share in row["equal"][side]]
    return {
        "images": images,
        "images_per_second": images / own,
        "peer_images_per_second": images / other,
        "ratio": other / own,
        "pixels_equal_mean": float(np.mean(shares)),
        "pixels_equal_least": min(shares),
    }


def export_model(state: Path, out: Path) -> None:
    """The exported model, through the command that a user runs."""
    wsss_rt(
        "export", state, "--official", "--method", "mctformer-v2", "--classes", "voc", "--layers-fused", 3,
        "--out", out,
    )  # fmt: skip


def tagged(folder: Path, tags: Path, count: int) -> list[tuple[Path, list[int]]]:
    """Photographs that the table gives tags for, spread over the folder, with 0-based VOC classes."""
    from wsss_rt.classes import VOC_CLASSES
    from wsss_rt.tags import load_tags

    table = load_tags(tags, classes=VOC_CLASSES)
    found = []
    for path in sorted(folder.glob("*.jpg")):
        names = table.lookup(path.name)
        if names:
            found.append((path, sorted(VOC_CLASSES.index(name) for name in set(names))))
    return [found[index * len(found) // count] for index in range(min(count, len(found)))]


def main() -> None:
    """Measure in turns and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--tags", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--work", type=Path, default=None)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="wsss-rt-"))
    work.mkdir(parents=True, exist_ok=True)
    chosen = tagged(options.images, options.tags, options.count)
    if not chosen:
        sys.exit(f"no photograph in {options.images} has tags in {options.tags}")
    load = os.getloadavg()[0]
    rows = measure(chosen, options.tags, work)
    sides = {name: summary(rows, name) for name in rows[0]["equal"]}
    result = {
        "photographs": len(chosen),
        "sizes": sorted({tuple(size) for row in rows for size in row["sizes"]}),
        "model": {
            "method": "mctformer-v2",
            "backbone": "deit_small_patch16_224",
            "classes": 20,
            "scale": SCALE,
        },
        "sides": sides,
        "turns": rows,
        "load_before": round(load, 2),
    }
    print(json.dumps(sides, indent=1))
    print(f"wrote {write_result('pipeline', result)}")


def measure(chosen: Sequence[tuple[Path, list[int]]], tags: Path, work: Path) -> list[dict[str, Any]]:
    """A row for each turn; the first turn is repeated, and only the repetition counts."""
    import torch
    from peer import Peer, label

    from wsss_rt.engines import open_engine
    from wsss_rt.errors import WsssError
    from wsss_rt.label_plan import Job
    from wsss_rt.label_run import label_folder
    from wsss_rt.options import LabelOptions
    from wsss_rt.refine.params import crf_params
    from wsss_rt.training.models import create_model, official_shapes

    shapes = official_shapes(create_model("mctformer-v2", num_classes=20, img_size=224))
    state = seeded_state(shapes)
    model = work / "seeded.onnx"
    if not model.exists():
        torch.save(state, work / "seeded.pth")
        export_model(work / "seeded.pth", model)
    engines = {}
    for precision in PRECISIONS:
        try:
            engines[precision] = open_engine(model, backend="openvino", precision=precision, cache=False)
        except WsssError as error:
            print(f"without {precision}: {error}", flush=True)
    peer = Peer(state)
    base = LabelOptions(
        scales=(1.0,), flip=True, refine="crf", crf=crf_params("mctformer"), backend="openvino"
    )
    background = base.resolved(next(iter(engines.values())).card).background or 0.0
    rows: list[dict[str, Any]] = []
    turns = [list(chosen[start : start + SLICE]) for start in range(0, len(chosen), SLICE)]
    for number, turn in enumerate([turns[0], *turns]):
        out = work / f"turn{number}"
        seconds: dict[str, float] = {}
        for precision, engine in engines.items():
            job = Job(
                inputs=[str(path) for path, _ in turn],
                out=out / precision,
                model=model,
                tags=tags,
                formats=("png",),
                options=replace(base, precision=precision),
                resume=False,
            )
            done = label_folder(job, engine=engine)
            if done.labelled != len(turn):
                raise SystemExit(f"labelled {done.labelled} of {len(turn)}: {dict(done.errors)}")
            seconds[precision] = done.wall_seconds
        (out / "peer").mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        for path, present in turn:
            label(peer, path, present, out / "peer" / f"{path.stem}.png", background)
        seconds["peer"] = time.perf_counter() - started
        row = {"images": len(turn), "seconds": seconds, **_agreement(turn, out, list(engines))}
        print(f"turn {number}: {row}" + ("" if number else " (warm-up)"), flush=True)
        if number:
            rows.append(row)
    return rows


def _agreement(turn: Sequence[tuple[Path, list[int]]], out: Path, sides: Sequence[str]) -> dict[str, Any]:
    from PIL import Image

    equal: dict[str, list[float]] = {name: [] for name in sides}
    sizes = []
    for path, _ in turn:
        wanted = np.asarray(Image.open(out / "peer" / f"{path.stem}.png"))
        sizes.append(list(wanted.shape))
        for name in sides:
            found = np.asarray(Image.open(out / name / "masks" / f"{path.stem}.png"))
            equal[name].append(equal_pixels(found, wanted))
    return {"equal": equal, "sizes": sizes}


if __name__ == "__main__":
    main()
