"""`wsss-rt label` beside the peer of peer.py, on the same photographs, in one run.

    python benchmarks/pipeline/compare.py --images VOC/JPEGImages --tags VOC/labels.csv [--count 20]

MCTformer-V2 on DeiT-S with 20 classes, K = 3 and seeded weights; photographs of PASCAL VOC's own size, scale
1 and mirror image, tags given, a CRF with the same parameters on both sides. The sides work in turns, a few
photographs each, and each is first in its turn, so that a neighbour's load falls on all. They start warm:
what is timed is images, not imports. Then the model alone, beside plain matrix products of the same library.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from commands import wsss_rt
from record import write_result

# labelled by one side before the others take their turns
SLICE = 4
SCALE = 0.08  # of the seeded weights; with smaller ones all maps are alike
PRECISIONS = ("float32", "bfloat16", "mixed")
PEER, FAST_PEER = "peer", "peer_bfloat16"
# what bfloat16 is beside without our operator for attention; of the model alone
LIBRARY_ATTENTION = "bfloat16 with OpenVINO's attention"
# photographs of VOC 2012 have it; smaller ones in a folder are copies that someone shrank
LONGEST_SIDE = 500
# photographs on which the model is measured alone
MODEL_INPUTS = 4


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


def summary(rows: Sequence[Mapping[str, Any]], side: str, peer: str = PEER) -> dict[str, Any]:
    """Images per second of one side, how many times the peer's in the same turns, and equal pixels.

    Args:
        rows: one per turn: ``images``; ``seconds`` and ``processor_seconds`` by side; ``equal`` by side, a
            list of shares; ``stages`` by side, milliseconds of each photograph; ``second_looks`` by side.
        side: name of the side.
        peer: name of the peer.
    """
    images = sum(row["images"] for row in rows)
    own, other = (sum(row["seconds"][name] for row in rows) for name in (side, peer))
    worked, of_peer = (sum(row["processor_seconds"][name] for row in rows) for name in (side, peer))
    ratios = [row["seconds"][peer] / row["seconds"][side] for row in rows]
    found = {
        "images": images,
        "images_per_second": images / own,
        "ratio": other / own,
        "ratio_median": median(ratios),
        "ratio_least": min(ratios),
        "processor_ms": 1e3 * worked / images,
        "processor_ratio": of_peer / worked,
        "second_looks": sum(row["second_looks"][side] for row in rows),
        "stages_ms": _stages([entry for row in rows for entry in row["stages"][side]]),
    }
    if side != peer:
        shares = [share for row in rows for share in row["equal"][side]]
        found |= {"pixels_equal_mean": float(np.mean(shares)), "pixels_equal_least": min(shares)}
    return found


def _stages(photographs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median milliseconds of each stage; of a photograph that has no such stage, none."""
    names = dict.fromkeys(name for entry in photographs for name in entry)
    return {name: median(entry.get(name, 0.0) for entry in photographs) for name in names}


def export_model(state: Path, out: Path) -> None:
    """The exported model, through the command that a user runs."""
    wsss_rt(
        "export", state, "--official", "--method", "mctformer-v2", "--classes", "voc", "--layers-fused", 3,
        "--out", out,
    )  # fmt: skip


def tagged(folder: Path, tags: Path, count: int) -> list[tuple[Path, list[int]]]:
    """Photographs of VOC's size that the table gives tags for, spread over the folder; classes from 0."""
    from wsss_rt.classes import VOC_CLASSES
    from wsss_rt.headers import header_size
    from wsss_rt.tags import load_tags

    table = load_tags(tags, classes=VOC_CLASSES)
    found = []
    for path in sorted(folder.glob("*.jpg")):
        names = table.lookup(path.name)
        if names and max(header_size(path, max_pixels=10**9)) == LONGEST_SIDE:
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
    parser.add_argument(
        "--work", type=Path, default=None, help="kept; the exported model is found there again"
    )
    parser.add_argument(
        "--export-only", action="store_true", help="only prepare --work, which takes a minute"
    )
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="wsss-rt-"))
    work.mkdir(parents=True, exist_ok=True)
    chosen = tagged(options.images, options.tags, options.count)
    if not chosen:
        sys.exit(f"no photograph of VOC's size in {options.images} has tags in {options.tags}")
    state = prepare(work)
    if options.export_only:
        return
    load = os.getloadavg()[0]
    rows, model = measure(chosen, options.tags, work, state)
    names = list(rows[0]["seconds"])
    kept = ("images", "first", "seconds", "processor_seconds", "equal")
    result = {
        "photographs": len(chosen),
        "sizes": sorted({tuple(size) for row in rows for size in row["sizes"]}),
        "model": {
            "method": "mctformer-v2",
            "backbone": "deit_small_patch16_224",
            "classes": 20,
            "scale": SCALE,
        },
        "sides": {name: summary(rows, name) for name in names},
        "model_stage": model,
        "turns": [{key: row[key] for key in kept} for row in rows],
        "load_before": round(load, 2),
    }
    print(json.dumps({"sides": result["sides"], "model_stage": model}, indent=1))
    print(f"wrote {write_result('pipeline', result)}")


def prepare(work: Path) -> dict[str, Any]:
    """The seeded weights, and the model exported from them as ``work/seeded.onnx``."""
    import torch

    from wsss_rt.training.models import create_model, official_shapes

    state = seeded_state(official_shapes(create_model("mctformer-v2", num_classes=20, img_size=224)))
    if not (work / "seeded.onnx").exists():
        torch.save(state, work / "seeded.pth")
        export_model(work / "seeded.pth", work / "seeded.onnx")
    return state


def measure(
    chosen: Sequence[tuple[Path, list[int]]], tags: Path, work: Path, state: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each turn (the first is repeated, and only the repetition counts), and the model alone."""
    import cv2
    import torch
    from peer import Peer
    from sides import OurSide, PeerSide, Side, in_turn

    from wsss_rt.engines import open_engine
    from wsss_rt.engines.runtime import default_threads
    from wsss_rt.errors import WsssError
    from wsss_rt.kernel_choice import VARIABLE
    from wsss_rt.options import LabelOptions
    from wsss_rt.refine.params import crf_params

    # as `wsss-rt label` sets it, and all processors for the peer
    cv2.setNumThreads(1)
    torch.set_num_threads(default_threads())
    model = work / "seeded.onnx"
    base = LabelOptions(
        scales=(1.0,), flip=True, refine="crf", crf=crf_params("mctformer"), backend="openvino"
    )
    engines, sides = {}, dict[str, Side]()
    for precision in PRECISIONS:
        try:
            engine = open_engine(model, backend="openvino", precision=precision, cache=False, gate=False)
        except WsssError as error:
            print(f"without {precision}: {error}", flush=True)
            continue
        engines[precision] = engine
        sides[precision] = OurSide(engine, model, tags, base)
    background = base.resolved(next(iter(engines.values())).card).background or 0.0
    sides[PEER] = PeerSide(Peer(state), background)
    if "bfloat16" in engines:
        sides[FAST_PEER] = PeerSide(Peer(state, bfloat16=True), background)
    rows: list[dict[str, Any]] = []
    turns = [chosen[start : start + SLICE] for start in range(0, len(chosen), SLICE)]
    for number, turn in enumerate([turns[0], *turns]):
        out = work / f"turn{number}"
        order = in_turn(sides, number)
        done = {name: sides[name].label(turn, out / name) for name in order}
        row = {
            "images": len(turn),
            "first": order[0],
            "seconds": {name: done[name].seconds for name in sides},
            "processor_seconds": {name: done[name].processor_seconds for name in sides},
            "stages": {name: done[name].stages for name in sides},
            "second_looks": {name: done[name].second_looks for name in sides},
            **_agreement(turn, out, [name for name in sides if name != PEER]),
        }
        print(f"turn {number}: {row['seconds']}" + ("" if number else " (warm-up)"), flush=True)
        if number:
            rows.append(row)
    # two precisions in one have no rate of products
    engines.pop("mixed", None)
    if "bfloat16" in engines:
        with patch.dict(os.environ, {VARIABLE: "reference"}):
            engines[LIBRARY_ATTENTION] = open_engine(
                model, backend="openvino", precision="bfloat16", cache=False, gate=False
            )
    return rows, _model_stage(engines, [path for path, _ in chosen[:MODEL_INPUTS]])


def _model_stage(engines: Mapping[str, Any], paths: Sequence[Path]) -> dict[str, Any]:
    from model_stage import deit_small_flops, measure_model

    from wsss_rt.io.decode import decode_image, read_bytes
    from wsss_rt.localize import prepare_passes

    spec = next(iter(engines.values())).card.input
    pairs, flops = [], []
    for path in paths:
        image = decode_image(read_bytes(path), max_pixels=10**9).upright
        pairs.append(prepare_passes(image, spec)[0].images)
        grid = [side // spec.patch for side in image.shape[:2]]
        flops.append(2 * deit_small_flops(grid[0] * grid[1] + 20))
    return measure_model(engines, pairs, flops)


def _agreement(turn: Sequence[tuple[Path, list[int]]], out: Path, sides: Sequence[str]) -> dict[str, Any]:
    from PIL import Image

    equal: dict[str, list[float]] = {name: [] for name in sides}
    sizes = []
    for path, _ in turn:
        wanted = np.asarray(Image.open(out / PEER / "masks" / f"{path.stem}.png"))
        sizes.append(list(wanted.shape))
        for name in sides:
            found = np.asarray(Image.open(out / name / "masks" / f"{path.stem}.png"))
            equal[name].append(equal_pixels(found, wanted))
    return {"equal": equal, "sizes": sizes}


if __name__ == "__main__":
    main()
