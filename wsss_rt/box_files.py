"""True boxes of images, read from CSV.

A line per box, under a header; other columns are left alone::

    image,class,left,top,right,bottom
    birds/wren.jpg,wren,31,40,210,187
    birds/wren.jpg,wren,215.5,38,300,160

Numbers are pixels of the stored image, before any EXIF rotation. Right and bottom lie behind the last pixel:
the box of a whole image of 640x480 is 0,0,640,480. The same file serves ``wsss-rt label --tags``.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from wsss_rt.errors import UsageError, WsssError
from wsss_rt.io.names import printable

COLUMNS = ("image", "class", "left", "top", "right", "bottom")


@dataclass(frozen=True)
class TrueBoxes:
    """What one image shows, and where.

    Attributes:
        classes: names that its lines give, in their order, without repetition.
        boxes: (K, 4) float64 left, top, right, bottom in pixels of the stored image.
    """

    classes: tuple[str, ...]
    boxes: NDArray[np.float64]


def read_boxes(path: Path) -> Mapping[str, TrueBoxes]:
    """Boxes by image, as the file names it (forward slashes), sorted.

    Args:
        path: CSV as the module describes it.

    Raises:
        UsageError: no such file.
        WsssError: code ``bad_boxes``: it cannot be read, a column is missing, or a line is no box.
    """
    if not path.is_file():
        raise UsageError(f"no file of boxes at {printable(path)}", fix=f"give a CSV of {','.join(COLUMNS)}")
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if any(row)]
    except (OSError, csv.Error) as error:
        raise _bad(path, f"{getattr(error, 'strerror', None) or error}") from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    absent = [name for name in COLUMNS if name not in header]
    if absent:
        raise _bad(path, f"its first line has no column {', '.join(absent)}")
    places = [header.index(name) for name in COLUMNS]
    names: dict[str, dict[str, None]] = {}
    boxes: dict[str, list[tuple[float, ...]]] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise _bad(path, f"row {number} has {len(row)} columns, the header has {len(header)}")
        image, name, *sides = (row[place].strip() for place in places)
        if not image or not name:
            raise _bad(path, f"row {number} names no {'class' if image else 'image'}")
        key = PurePosixPath(image).as_posix()
        names.setdefault(key, {})[name] = None
        boxes.setdefault(key, []).append(_box(path, number, sides))
    if not boxes:
        raise _bad(path, "it lists no box")
    return {key: TrueBoxes(tuple(names[key]), np.array(boxes[key], np.float64)) for key in sorted(boxes)}


def _box(path: Path, number: int, sides: list[str]) -> tuple[float, ...]:
    try:
        left, top, right, bottom = values = tuple(float(side) for side in sides)
    except ValueError as error:
        raise _bad(path, f"row {number}: {','.join(sides)[:80]} are not four numbers") from error
    if not all(math.isfinite(value) for value in values) or not (left < right and top < bottom):
        raise _bad(path, f"row {number}: {','.join(sides)[:80]} is no box: left < right and top < bottom")
    return values


def _bad(path: Path, why: str) -> WsssError:
    return WsssError(
        f"cannot read boxes from {printable(path)}",
        why=why,
        fix=f"write a line per box under the header {','.join(COLUMNS)}",
        code="bad_boxes",
    )
