"""The dense CRF beside pydensecrf, image by image in one process: time, agreement, mIoU before and after.

    python benchmarks/refine/compare.py [--data ../shared/data/voc_animals] [--count 20] [--repeats 3]

Without photographs it takes scenes; without pydensecrf2 (extra ``crf-reference``) it gives no ratio. The
probabilities come from the true masks: the shares of the classes on tokens of 16 pixels, with noise, drawn
up to the image. Every repetition runs all candidates in turn, so that a busy machine is busy for all.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsss_rt.refine.crew import Crew
from wsss_rt.refine.dense_crf import dense_crf
from wsss_rt.refine.lattice import build_lattice
from wsss_rt.refine.params import PRESETS, CrfParams

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from record import write_result  # noqa: E402

TOKEN = 16
NOISE = 0.25
IGNORE = 255
Sample = tuple[str, NDArray[np.uint8], NDArray[np.uint8]]


def photographs(data: Path, count: int) -> Iterator[Sample]:
    """Name, image and mask of the first photographs that show one to three classes."""
    found = 0
    for mask_path in sorted((data / "SegmentationClass").glob("*.png")):
        with Image.open(mask_path) as opened:
            mask = np.asarray(opened)
        classes = np.setdiff1d(np.unique(mask), (0, IGNORE))
        if not 1 <= len(classes) <= 3:
            continue
        with Image.open(data / "JPEGImages" / f"{mask_path.stem}.jpg") as opened:
            image = np.asarray(opened.convert("RGB"))
        yield mask_path.stem, image, mask
        found += 1
        if found == count:
            return


def scenes(count: int) -> Iterator[Sample]:
    """The same from generated scenes, at the size of photographs."""
    from wsss_rt.scenes import render_scene

    for index in range(count):
        scene = render_scene(90_001, index, height=375, width=500)
        yield f"scene {index}", scene.image, scene.mask


def noisy(mask: NDArray[np.uint8], classes: NDArray[np.uint8], seed: int) -> NDArray[np.float32]:
    """(C, H, W) float32 probabilities, as coarse as a token map and wrong in places."""
    rng = np.random.default_rng(seed)
    height, width = mask.shape
    grid = (-(-width // TOKEN), -(-height // TOKEN))
    planes = []
    for value in classes:
        share = cv2.resize((mask == value).astype(np.float32), grid, interpolation=cv2.INTER_AREA)
        share += rng.normal(0, NOISE, share.shape).astype(np.float32)
        planes.append(cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR))
    stacked = np.clip(np.stack(planes), 0.02, 1)
    return np.asarray(stacked / stacked.sum(axis=0), np.float32)


class Confusion:
    """Intersections and unions by class, over all images."""

    def __init__(self) -> None:
        self.shared: defaultdict[int, int] = defaultdict(int)
        self.either: defaultdict[int, int] = defaultdict(int)

    def add(self, found: NDArray[Any], truth: NDArray[np.uint8], classes: NDArray[np.uint8]) -> float:
        """Count an image; returns its own mean IoU."""
        known, own = truth != IGNORE, []
        for value in classes:
            a, b = (found == value) & known, (truth == value) & known
            shared, either = int((a & b).sum()), int((a | b).sum())
            self.shared[int(value)] += shared
            self.either[int(value)] += either
            own.append(shared / max(either, 1))
        return statistics.fmean(own)

    def miou(self) -> float:
        """Mean over the classes that occur."""
        return statistics.fmean(self.shared[key] / self.either[key] for key in self.either)


def milliseconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    function()
    return (time.perf_counter() - begun) * 1e3


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/voc_animals"))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mctformer")
    options = parser.parse_args()
    params = PRESETS[options.preset]
    there = options.data.is_dir()
    samples = photographs(options.data, options.count) if there else scenes(options.count)
    reference: Callable[..., NDArray[np.float32]] | None = None
    if importlib.util.find_spec("pydensecrf") is not None:
        from wsss_rt.refine import pydensecrf_backend

        reference = pydensecrf_backend.dense_crf

    rows, before, after = [], Confusion(), Confusion()
    for seed, (name, image, mask) in enumerate(samples):
        classes = np.setdiff1d(np.unique(mask), (IGNORE,))
        given = noisy(mask, classes, seed)
        row, marginals = _measure(image, given, params, reference, options.repeats)
        miou = {
            "before": before.add(classes[given.argmax(axis=0)], mask, classes),
            "after": after.add(classes[marginals.argmax(axis=0)], mask, classes),
        }
        rows.append({"name": name, "size": list(mask.shape), "classes": len(classes), "miou": miou, **row})
        print(name, row, flush=True)
    path = write_result(
        "refine",
        {
            "inputs": "VOC animals" if there else "scenes",
            "preset": options.preset,
            "repeats": options.repeats,
            "images": rows,
            "miou": {"before": before.miou(), "after": after.miou()},
            "worse_after": [row["name"] for row in rows if row["miou"]["after"] < row["miou"]["before"]],
            "median": _medians(rows),
        },
    )
    print(f"wrote {path}")


def _measure(
    image: NDArray[np.uint8],
    given: NDArray[np.float32],
    params: CrfParams,
    reference: Callable[..., NDArray[np.float32]] | None,
    repeats: int,
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Medians over the repetitions, agreement with the reference, and our marginals."""
    marginals = dense_crf(image, given, params)
    deviations = (*(params.bilateral_sxy,) * 2, *(params.bilateral_srgb,) * 3)
    plain = np.ascontiguousarray(image).view()
    plain.flags.writeable = False
    candidates: dict[str, Callable[[], Any]] = {
        "ours_1_thread": lambda: dense_crf(image, given, params),
        "ours_2_threads": lambda: dense_crf(image, given, params, threads=2),
        "ours_lattice_alone": lambda: build_lattice(plain, deviations, strength=1.0, crew=Crew(1)),
    }
    row: dict[str, Any] = {}
    if reference is not None:
        candidates["pydensecrf"] = lambda: reference(image, given, params)
        wanted = reference(image, given, params)
        row["largest_difference"] = float(np.abs(wanted - marginals).max())
        row["labels_equal"] = float((wanted.argmax(axis=0) == marginals.argmax(axis=0)).mean())
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            times[name].append(milliseconds(call))
    row["ms"] = {name: round(statistics.median(values), 2) for name, values in times.items()}
    return row, marginals


def _medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the images: time of each candidate, and its ratio to the reference."""
    names = rows[0]["ms"]
    result: dict[str, Any] = {"ms": {name: statistics.median(r["ms"][name] for r in rows) for name in names}}
    if "pydensecrf" in names:
        result["times_faster"] = {
            name: round(statistics.median(r["ms"]["pydensecrf"] / r["ms"][name] for r in rows), 2)
            for name in ("ours_1_thread", "ours_2_threads")
        }
        result["largest_difference"] = max(row["largest_difference"] for row in rows)
        result["labels_equal"] = min(row["labels_equal"] for row in rows)
    return result


if __name__ == "__main__":
    main()
