"""Stores what examples/pipeline.sh measured, and draws what each stage made of a few held-out scenes.

    bash examples/pipeline.sh runs/pipeline
    python benchmarks/pipeline_stages.py --work runs/pipeline [--note TEXT]

Columns of docs/pictures/pipeline.png: image, truth, localizer (tags given), the same after the CRF, after the
walk, and the segmenter, which saw no tags.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from record import write_result

from wsss_rt.classes import voc_palette
from wsss_rt.formats.png import read_mask

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "pipeline.png"
SIDE, GAP, WHITE = 150, 6, 255
COLUMNS = ("held-given", "held-crf", "held-walk", "segvit")
# a palette is a third of the bytes of three channels
COLOURS = 256


def tile(pixels: NDArray[np.uint8], *, smooth: bool) -> Image.Image:
    """The middle square of an image or of a painted mask, at the sheet's size."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return Image.fromarray(pixels[top : top + side, left : left + side]).resize((SIDE, SIDE), how)


def sheet(work: Path, rows: list[int]) -> Image.Image:
    """A row per scene, of these numbers among the held-out ones."""
    held = work / "scenes" / "held-out"
    names = sorted(path.stem for path in (held / "JPEGImages").iterdir())
    palette = np.array(voc_palette(), np.uint8)
    width = (len(COLUMNS) + 2) * (SIDE + GAP) - GAP
    page = Image.new("RGB", (width, len(rows) * (SIDE + GAP) - GAP), (WHITE,) * 3)
    for row, number in enumerate(rows):
        name = names[number]
        image = np.asarray(Image.open(held / "JPEGImages" / f"{name}.jpg").convert("RGB"))
        masks = [held / "SegmentationClass" / f"{name}.png"]
        masks += [work / "masks" / column / "masks" / f"{name}.png" for column in COLUMNS]
        tiles = [tile(image, smooth=True)]
        tiles += [tile(palette[read_mask(path)], smooth=False) for path in masks]
        for column, picture in enumerate(tiles):
            page.paste(picture, (column * (SIDE + GAP), row * (SIDE + GAP)))
    return page.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def main() -> None:
    """Store and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="*", default=[0, 1, 2, 5, 7, 9])
    parser.add_argument("--note", default="", help="what a reader should know of the run")
    options = parser.parse_args()
    result = json.loads((options.work / "results.json").read_text())
    if options.note:
        result["note"] = options.note
    print(f"wrote {write_result('pipeline_stages', result)}")
    sheet(options.work, options.rows).save(PICTURE, optimize=True)
    print(f"wrote {PICTURE}, {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
