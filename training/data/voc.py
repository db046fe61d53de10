"""PASCAL VOC trees: JPEGImages, ImageSets, and tags from a file, from XML or from masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from wsss_rt.classes import BACKGROUND, VOC_CLASSES, ClassSet, load_classes
from wsss_rt.errors import UsageError, WsssError, nearest
from wsss_rt.formats.png import read_mask
from wsss_rt.tags import TagTable, load_tags
from wsss_rt.training.config import DataSection
from wsss_rt.training.data.splits import Progress, Split, TrainingData, combine

IMAGES = "JPEGImages"
LABEL_VECTORS = "cls_labels.npy"
_TAG_FILES = ("labels.csv", "tags.csv", "labels.json", "tags.json", LABEL_VECTORS)
_MASKS = "SegmentationClass"
_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def is_voc(root: Path) -> bool:
    """Whether a folder looks like ``VOC2012``."""
    return (root / IMAGES).is_dir()


def open_voc(root: Path, section: DataSection, progress: Progress = None) -> TrainingData:
    """Sources of a VOC tree.

    Tags come from ``section.tags`` (a file; ``voc`` for the XML annotations, ``masks`` for the masks), else
    from the first of labels.csv, tags.csv, labels.json, tags.json, ``cls_labels.npy``, ``Annotations`` and
    the masks. Classes are those of ``section.classes``, else of classes.txt, else VOC's.

    Raises:
        UsageError: no such split, no tags, or an unknown class.
        WsssError: files that cannot be read or do not fit together.
    """
    if not is_voc(root):
        raise UsageError(
            f"{root} is no VOC tree", why=f"it has no folder {IMAGES}", fix="give VOC2012 itself"
        )
    split = section.split or next((s for s in ("train_aug", "trainaug", "train") if _split_file(root, s)), "")
    names = _read_split(root, split)
    table, how = _tags(root, section, names)
    classes = _classes(root, section, table)
    train = Split(split, names, _files(root, names), table)

    val_split = section.val_split or ("val" if split != "val" and _split_file(root, "val") else "")
    validation = None
    if section.val_images and val_split:
        val_names = _read_split(root, val_split)
        files = _files(root, val_names)
        masks = {name: root / _MASKS / f"{name}.png" for name in files}
        masks = {name: path for name, path in masks.items() if path.is_file()}
        val_table = table if how != "masks" else _mask_table(root, val_names)
        validation = Split(val_split, val_names, files, val_table, masks)
    facts = {"data": f"VOC tree, split {split}", "tags": how}
    return combine(classes, train, validation, section, facts, progress=progress)


def _classes(root: Path, section: DataSection, table: TagTable) -> ClassSet:
    if section.classes:
        return load_classes(section.classes)
    if (root / "classes.txt").is_file():
        return load_classes(root / "classes.txt")
    return ClassSet(VOC_CLASSES if set(table.classes) <= set(VOC_CLASSES) else table.classes)


def _split_file(root: Path, split: str) -> Path | None:
    for folder in ("Segmentation", "Main"):
        path = root / "ImageSets" / folder / f"{split}.txt"
        if path.is_file():
            return path
    return None


def _read_split(root: Path, split: str) -> list[str]:
    path = _split_file(root, split) if split else None
    if path is None:
        choices = sorted({file.stem for file in (root / "ImageSets").glob("*/*.txt")})
        raise UsageError(
            f"no split {split!r} in {root}",
            fix=nearest(split, choices) if choices else "ImageSets holds no list",
        )
    names = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if words := line.split():
            word = PurePosixPath(words[0])
            # some lists hold paths such as /JPEGImages/2007_000032.jpg
            names.append(word.stem if word.suffix.lower() in _ENDINGS else word.name)
    return list(dict.fromkeys(names))


def _files(root: Path, names: Sequence[str]) -> dict[str, Path]:
    present = set(os.listdir(root / IMAGES))
    found = {}
    for name in names:
        ending = next((ending for ending in _ENDINGS if f"{name}{ending}" in present), None)
        if ending is not None:
            found[name] = root / IMAGES / f"{name}{ending}"
    return found


def _tags(root: Path, section: DataSection, names: Sequence[str]) -> tuple[TagTable, str]:
    """Tags, and where they come from."""
    tags = section.tags
    if tags and tags not in ("voc", "masks"):
        return _load(root, section, Path(tags)), Path(tags).name
    if not tags:
        for name in _TAG_FILES:
            if (root / name).is_file():
                return _load(root, section, root / name), name
    if tags != "masks":
        if (root / "Annotations").is_dir():
            return load_tags(root / "Annotations"), "Annotations"
        if (root / "labels.csv").is_file():
            return load_tags(root / "labels.csv"), "labels.csv"
    if (root / _MASKS).is_dir():
        return _mask_table(root, names), "masks"
    raise UsageError(
        f"{root} has no tags",
        fix=f"add --tags FILE; labels.csv, {LABEL_VECTORS}, Annotations and {_MASKS} are looked for",
    )


def _load(root: Path, section: DataSection, path: Path) -> TagTable:
    if path.suffix.lower() != ".npy":
        return load_tags(path)
    # vectors hold no names, so that the order of one's own classes has to come from elsewhere
    own = section.classes or (root / "classes.txt" if (root / "classes.txt").is_file() else "")
    return load_tags(path, classes=load_classes(own).names if own else None)


def _mask_table(root: Path, names: Sequence[str]) -> TagTable:
    """Tags that the masks imply; VOC's classes unless classes.txt names others."""
    path = root / "classes.txt"
    known = load_classes(path) if path.is_file() else ClassSet(VOC_CLASSES)
    classes = known.names
    entries = {}
    for name in names:
        mask = root / _MASKS / f"{name}.png"
        if not mask.is_file():
            continue
        found = np.unique(read_mask(mask, wide=known.wide))
        values = [int(value) for value in found if value not in (BACKGROUND, known.ignore)]
        if strangers := [value for value in values if value > len(classes)]:
            raise WsssError(f"{mask} holds the value {strangers[0]}, but there are {len(classes)} classes")
        entries[name] = tuple(classes[value - 1] for value in values)
    return TagTable(classes, entries, source=str(root / _MASKS))
