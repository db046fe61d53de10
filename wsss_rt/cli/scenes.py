"""`wsss-rt scenes`: write a set of synthetic scenes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from wsss_rt.errors import UsageError


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip())
    if match is None:
        raise UsageError(
            f"--size {text!r} is not a size", fix="give HEIGHTxWIDTH in pixels, for example 224x224"
        )
    return int(match[1]), int(match[2])


def scenes(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New or empty folder to write into.")],
    count: Annotated[int, typer.Option("--count", metavar="N", help="Number of scenes, at least 1.")],
    seed: Annotated[
        int, typer.Option("--seed", metavar="S", help="Seed; the same seed gives the same bytes.")
    ] = 0,
    size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="HxW", help="One size for all, 64 to 4096 a side. Default: varied, not square."
        ),
    ] = None,
) -> None:
    """Generate a benchmark of synthetic scenes with exact masks.

    Writes JPEGImages, SegmentationClass and ImageSets as PASCAL VOC does, classes.txt, and labels.csv with
    each image's tags. A run that was stopped goes on when it is repeated.

    \b
    wsss-rt scenes --out scenes --count 300 --seed 1
    wsss-rt scenes --out square --count 1000 --seed 2 --size 224x224
    wsss-rt label scenes/JPEGImages --tags scenes/labels.csv --out masks
    """
    fixed = _parse_size(size) if size is not None else None
    from wsss_rt.scenes import write_scenes

    live = sys.stderr.isatty()

    def show(done: int) -> None:
        if live and (done % 20 == 0 or done == count):
            print(f"\r{done}/{count} scenes", end="", file=sys.stderr, flush=True)

    write_scenes(out, count, seed, fixed, progress=show)
    if live:
        print(file=sys.stderr)
    print(f"{count} scenes in {out}", file=sys.stderr)
