"""Maps of every method side by side, from the runs of ``methods.py``, as docs/pictures/methods.jpg.

    python benchmarks/methods_picture.py --work runs/methods

A row is a scene that no model has seen, with one of its classes; a column a method, each with its best map of
that benchmark and seed 0. Brightness is the map after min-max, laid over the scene; the outline is the truth.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from methods import ROWS, SEED, folder_of
from PIL import Image, ImageDraw, ImageFont
from record import RESULTS

from wsss_rt.classes import SCENE_CLASSES
from wsss_rt.localize import merge_passes, prepare_passes
from wsss_rt.training.checkpoints import load_run
from wsss_rt.training.data.sources import Sample, SceneSource
from wsss_rt.training.validation import map_kinds

PICTURE = RESULTS.parent.parent / "docs" / "pictures" / "methods.jpg"
SIDE, HEAD, GAP = 150, 48, 4
# chosen by their number of classes, not by how good any map is
OF_CLASSES = (1, 1, 2, 2, 3)

Array = np.ndarray[Any, Any]


def chosen_scenes() -> list[Sample]:
    """The first scenes of the benchmark that show as many classes as ``OF_CLASSES`` says."""
    source, waiting, found = SceneSource(SEED, count=300), list(OF_CLASSES), []
    for index in range(300):
        sample = source.load(index, mask=True)
        if len(sample.tags) in waiting:
            waiting.remove(len(sample.tags))
            found.append(sample)
        if not waiting:
            break
    return sorted(found, key=lambda sample: len(sample.tags))


def class_map(run: Path, kind: str, sample: Sample, label: int) -> Array:
    """(H, W) float32 in 0..1 of one class."""
    model, config = load_run(run)
    name, _, rectified = kind.partition(", ")
    options = {entry.name: entry.options for entry in map_kinds(model)}[name]
    rule = replace(model.map_rule, normalise="peak") if rectified else model.map_rule
    one = prepare_passes(sample.image, config.input, scales=(1.0,), flip=True)[0]
    with torch.no_grad():
        found = model.localize_each(torch.from_numpy(one.images), [options])[0]
    height, width = sample.image.shape[:2]
    merged: Array = merge_passes([found.maps.numpy()], [label], size=(height, width), rule=rule)[0]
    return merged


def fit(pixels: Array) -> Array:
    """The middle square, SIDE px."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return cv2.resize(
        pixels[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA
    )


def heat(image: Array, values: Array, mask: Array) -> Array:
    """A map over its image, with the outline of the truth."""
    colors = cv2.applyColorMap((255 * values).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    mixed = np.ascontiguousarray((0.25 * gray + 0.75 * colors).astype(np.uint8))
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(mixed, outlines, -1, (255, 255, 255), 1)
    return mixed


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    result = json.loads((RESULTS / "methods.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    shown = [row for row in ROWS if row.name in rows]
    scenes = chosen_scenes()
    heads = ["scene", *(row.name.replace(" + ", "\n+ ").replace(", ", ",\n") for row in shown)]
    sheet = Image.new("RGB", ((SIDE + GAP) * len(heads), HEAD + (SIDE + GAP) * len(scenes)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for column, text in enumerate(heads):
        draw.multiline_text((column * (SIDE + GAP) + 2, 2), text, "black", font=font, spacing=1)
    for place, sample in enumerate(scenes):
        assert sample.mask is not None
        label = sample.tags[place % len(sample.tags)]
        tiles = [sample.image]
        for row in shown:
            kinds = rows[row.name]["miou"]
            best = max(kinds, key=lambda kind: kinds[kind]["mean"])
            values = class_map(folder_of(row, 0, work), best, sample, label)
            tiles.append(heat(sample.image, values, sample.mask == label + 1))
        top = HEAD + place * (SIDE + GAP)
        for column, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(fit(tile)), (column * (SIDE + GAP), top))
        draw.text((4, top + 2), SCENE_CLASSES[label], "white", font=font, stroke_width=2, stroke_fill="black")
    PICTURE.parent.mkdir(exist_ok=True)
    sheet.save(PICTURE, quality=82)
    print(f"wrote {PICTURE.name}, {PICTURE.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
