"""From the data section of a configuration to sources for training and validation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from wsss_rt.classes import ClassSet, load_classes
from wsss_rt.errors import UsageError
from wsss_rt.tags import FOLDERS, TagTable, load_tags
from wsss_rt.training.config import DataSection, Layout
from wsss_rt.training.data.coco import is_coco, open_coco
from wsss_rt.training.data.cub import is_cub, open_cub
from wsss_rt.training.data.ilsvrc import is_ilsvrc, open_ilsvrc
from wsss_rt.training.data.masks import images_below, open_masks
from wsss_rt.training.data.planes import PLANES, find_planes
from wsss_rt.training.data.sources import SceneSource
from wsss_rt.training.data.splits import Progress, TrainingData, decodable, file_data, hold_out
from wsss_rt.training.data.validate import match_tags, refuse_unknown
from wsss_rt.training.data.voc import is_voc, open_voc

__all__ = ["SCENES", "TrainingData", "build_data", "find_layout"]

SCENES = "scenes"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_TAG_FILES = ("labels.csv", "tags.csv", "labels.json", "tags.json")

Opener = Callable[[Path, DataSection, Progress], TrainingData]


def build_data(section: DataSection, *, seed: int, progress: Progress = None) -> TrainingData:
    """Open the sources and check them.

    Args:
        section: see :class:`DataSection`.
        seed: of training scenes.
        progress: told when a check takes a while.

    Raises:
        UsageError: no such data, split or class.
        WsssError: images, tags and planes do not fit together.
    """
    data = _open(section, seed, progress)
    given = [name for name in PLANES if getattr(section, name)]
    if not given:
        return data
    # other planes are other data: a run does not go on with them
    planes = find_planes(data.train, section, given)
    both = hashlib.sha256(f"{data.fingerprint} {planes.fingerprint}".encode()).hexdigest()
    return replace(data, fingerprint=both)


def _open(section: DataSection, seed: int, progress: Progress) -> TrainingData:
    if not section.source:
        raise UsageError("no training data given", fix="add --data FOLDER, or --data scenes")
    if section.source == SCENES:
        return _scenes(section, seed)
    if section.close_ups:
        raise UsageError(
            "only scenes can be shown as close-ups", fix="leave out data.close_ups, or train on --data scenes"
        )
    root = Path(section.source)
    if not root.is_dir():
        raise UsageError(
            f"no folder {root}",
            fix="give a folder of images, a VOC, COCO, CUB or ILSVRC tree, or the word 'scenes'",
        )
    if section.masks:
        return open_masks(*images_below(root, _image_files(root)), section, progress)
    layout = find_layout(root) if section.layout is Layout.AUTO else section.layout
    return _OPENERS[layout](root, section, progress)


def find_layout(root: Path) -> Layout:
    """The data set that a folder looks like; a folder of images where it looks like none."""
    looks = {Layout.VOC: is_voc, Layout.COCO: is_coco, Layout.CUB: is_cub, Layout.ILSVRC: is_ilsvrc}
    return next((layout for layout, fits in looks.items() if fits(root)), Layout.FOLDER)


def _scenes(section: DataSection, seed: int) -> TrainingData:
    if section.tags or section.masks or section.classes not in ("", SCENES):
        raise UsageError(
            "scenes come with their own tags, masks and classes",
            fix="leave out --tags, --masks and --classes",
        )
    if section.val_seed == seed:
        raise UsageError(f"training and validation scenes share the seed {seed}", fix="change data.val_seed")
    validation = SceneSource(section.val_seed, count=section.val_images) if section.val_images else None
    facts = {"data": "synthetic scenes", "seed": seed, "validation_seed": section.val_seed}
    train = SceneSource(seed, close_ups=section.close_ups)
    return TrainingData(load_classes(SCENES), train, validation, facts, f"scenes:{seed}")


def _folder(root: Path, section: DataSection, progress: Progress) -> TrainingData:
    files = _image_files(root)
    if not files:
        raise UsageError(
            f"no image below {root}", fix=f"endings looked for: {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    source = section.tags or _default_tags(root)
    table = load_tags(source)
    if table.from_folders:
        names = {PurePosixPath(name).parent.name for name in files} - {""}
        table = TagTable(tuple(sorted(names)), {}, source=table.source, from_folders=True)
        if section.classes and (strangers := names - set(load_classes(section.classes).names)):
            allowed = load_classes(section.classes).names
            refuse_unknown(dict.fromkeys(sorted(strangers), 1), allowed, "the folder")
    classes = load_classes(section.classes) if section.classes else ClassSet(table.classes)
    items, report = match_tags(files, table, classes.names)
    items = decodable(items, report, section, progress)
    train, validation = hold_out(items, section.val_images)
    facts = {"data": "folder with tags", "tags": "folder names" if table.from_folders else Path(source).name}
    return file_data(classes, train, validation, report, facts)


def _image_files(root: Path) -> dict[str, Path]:
    """Image files below ``root`` by relative path, sorted; links to folders are not followed."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                path = Path(folder) / name
                found[path.relative_to(root).as_posix()] = path
    return dict(sorted(found.items()))


def _default_tags(root: Path) -> str:
    for name in _TAG_FILES:
        if (root / name).is_file():
            return str(root / name)
    if any(path.is_dir() for path in root.iterdir()):
        return FOLDERS
    raise UsageError(
        f"no tags for the images in {root}",
        fix=f"add --tags FILE, put {_TAG_FILES[0]} there, or sort the images into one folder per class",
    )


_OPENERS: dict[Layout, Opener] = {
    Layout.VOC: open_voc,
    Layout.COCO: open_coco,
    Layout.CUB: open_cub,
    Layout.ILSVRC: open_ilsvrc,
    Layout.FOLDER: _folder,
}
