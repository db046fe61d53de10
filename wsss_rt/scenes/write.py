"""A set of scenes on disk, in the layout of PASCAL VOC."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from wsss_rt.classes import SCENE_CLASSES, voc_palette
from wsss_rt.errors import UsageError
from wsss_rt.io.atomic import write_atomic, writing_error
from wsss_rt.scenes import check_size, render_scene
from wsss_rt.scenes.noise import U8

_DESCRIPTION = "scenes.json"
GENERATOR = 1  # raise whenever the same seed gives other bytes


def _mask_png(mask: U8) -> bytes:
    picture = Image.fromarray(mask, "L")
    picture.putpalette([channel for color in voc_palette() for channel in color])  # turns L into P
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    """Write without waiting for the disk: a set that was cut short has no lists, and is drawn again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise writing_error(error, path, needed=len(data)) from error


def _claim(out: Path, description: bytes) -> None:
    """Take a new or empty folder, or one that holds this very set; leave any other alone."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is not a folder", fix="choose another --out")
    if out.is_dir() and any(out.iterdir()):
        known = out / _DESCRIPTION
        if not known.is_file():
            raise UsageError(
                f"{out} is not empty and holds no set of scenes", fix="choose a new or empty --out"
            )
        if known.read_bytes() != description:
            raise UsageError(
                f"{out} holds another set of scenes",
                why=f"{known} differs from the count, seed, size or generator of this one",
                fix="choose a new or empty --out, or repeat that set's options to complete it",
            )
    write_atomic(out / _DESCRIPTION, description)


def write_scenes(
    out: str | Path,
    count: int,
    seed: int,
    size: tuple[int, int] | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write scenes 0..count-1 of `seed` as a VOC tree with tags.

    JPEGImages/, SegmentationClass/ (indexed PNG, VOC colours), ImageSets/Segmentation/all.txt, classes.txt,
    labels.csv (`image,tags`, tags split by ;) and scenes.json, which says how the set was made. A folder that
    already holds the same set is completed or rewritten with the same bytes.

    Args:
        out: a new or empty folder, or one with the same set.
        size: (height, width) of every scene; None for varied, non-square sizes.
        progress: called with the number of scenes written so far.

    Raises:
        UsageError: a folder with other content, a size outside 64..4096, a count below 1, a negative seed.
        WsssError: a file cannot be written.
    """
    out = Path(out)
    height, width = size or (None, None)
    check_size(height, width)
    if count < 1 or seed < 0:
        raise UsageError(
            f"{count} scenes of seed {seed} cannot be drawn", fix="count >= 1 and seed >= 0 are needed"
        )
    made = {"generator": GENERATOR, "seed": seed, "count": count, "size": list(size) if size else None}
    _claim(out, (json.dumps(made) + "\n").encode())
    stems, rows = [], ["image,tags"]
    for index in range(count):
        scene = render_scene(seed, index, height=height, width=width)
        stem = f"scene_{seed}_{index:06d}"
        _write(out / "JPEGImages" / f"{stem}.jpg", scene.jpeg)
        _write(out / "SegmentationClass" / f"{stem}.png", _mask_png(scene.mask))
        stems.append(stem)
        rows.append(f"{stem}.jpg,{';'.join(SCENE_CLASSES[tag] for tag in scene.tags)}")
        if progress is not None:
            progress(index + 1)
    names = ["background", *SCENE_CLASSES]
    texts = {
        "ImageSets/Segmentation/all.txt": stems,
        "classes.txt": [f"{value} {name}" for value, name in enumerate(names)],
        "labels.csv": rows,
    }
    for name, lines in texts.items():
        write_atomic(out / name, ("\n".join(lines) + "\n").encode())
