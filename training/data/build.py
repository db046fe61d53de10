"""From the data section of a configuration to sources for training and validation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from wsss_rt.classes import BACKGROUND, IGNORE, VOC_CLASSES, ClassSet, load_classes
from wsss_rt.errors import UsageError, WsssError, nearest
from wsss_rt.tags import FOLDERS, TagTable, load_tags
from wsss_rt.training.config import DataSection
from wsss_rt.training.data.sources import FileSource, Item, SceneSource, Source, read_mask
from wsss_rt.training.data.validate import (
    DataReport,
    check_masks,
    drop_broken,
    finish,
    match_tags,
    refuse_unknown,
)

SCENES = "scenes"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_TAG_FILES = ("labels.csv", "tags.csv", "labels.json", "tags.json")
# a share of one's own images that validation may take
_HELD_OUT = 0.1


@dataclass(frozen=True)
class TrainingData:
    """Everything that the loop needs to know of the data.

    Attributes:
        classes: in the order of the model's outputs.
        train: never shows an image of ``validation``.
        validation: None where there is nothing to validate on.
        facts: for the run's config: what was trained on.
        fingerprint: changes when the list of images or a tag does.
        messages: findings, for stderr.
    """

    classes: ClassSet
    train: Source
    validation: Source | None
    facts: dict[str, Any]
    fingerprint: str
    messages: list[str] = field(default_factory=list)


def build_data(
    section: DataSection, *, seed: int, progress: Callable[[str], None] | None = None
) -> TrainingData:
    """Open the sources and check them.

    Args:
        section: see :class:`DataSection`.
        seed: of training scenes.
        progress: told when a check takes a while.

    Raises:
        UsageError: no such data, split or class.
        WsssError: images and tags do not fit together.
    """
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
        raise UsageError(f"no folder {root}", fix="give a folder of images, a VOC tree, or the word 'scenes'")
    if (root / "JPEGImages").is_dir():
        return _voc(root, section, progress)
    return _folder(root, section, progress)


def _scenes(section: DataSection, seed: int) -> TrainingData:
    if section.tags or section.classes not in ("", SCENES):
        raise UsageError("scenes come with their own tags and classes", fix="leave out --tags and --classes")
    if section.val_seed == seed:
        raise UsageError(f"training and validation scenes share the seed {seed}", fix="change data.val_seed")
    validation = SceneSource(section.val_seed, count=section.val_images) if section.val_images else None
    facts = {"data": "synthetic scenes", "seed": seed, "validation_seed": section.val_seed}
    train = SceneSource(seed, close_ups=section.close_ups)
    return TrainingData(load_classes(SCENES), train, validation, facts, f"scenes:{seed}")


def _folder(root: Path, section: DataSection, progress: Callable[[str], None] | None) -> TrainingData:
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
    items = _decodable(items, report, section, progress)
    train, validation = _hold_out(items, section.val_images)
    facts = {"data": "folder with tags", "tags": "folder names" if table.from_folders else Path(source).name}
    return _file_data(classes, train, validation, report, facts)


def _voc(root: Path, section: DataSection, progress: Callable[[str], None] | None) -> TrainingData:
    split = section.split or next((s for s in ("train_aug", "trainaug", "train") if _split_file(root, s)), "")
    names = _read_split(root, split)
    files = {name: path for name, path in _voc_files(root, names).items() if path is not None}
    table, how = _voc_tags(root, section.tags, names)
    if section.classes:
        classes = load_classes(section.classes)
    elif (root / "classes.txt").is_file():
        classes = load_classes(root / "classes.txt")
    else:
        classes = ClassSet(VOC_CLASSES if set(table.classes) <= set(VOC_CLASSES) else table.classes)
    items, report = match_tags(files, table, classes.names, only=names)
    items = _decodable(items, report, section, progress)

    problems: list[str] = []
    validation: list[Item] = []
    val_split = section.val_split or ("val" if split != "val" and _split_file(root, "val") else "")
    if not section.val_images:
        train = items
    elif not val_split:
        train, validation = _hold_out(items, section.val_images)
    else:
        val_names = _read_split(root, val_split)
        if both := sorted(set(val_names) & {item.name for item in items}):
            raise WsssError(
                f"{len(both)} images stand in both {split} and {val_split}, e.g. {both[0]}",
                why="validation would measure what training has seen",
                code="split_overlap",
            )
        val_files = {name: path for name, path in _voc_files(root, val_names).items() if path is not None}
        masks = {name: root / "SegmentationClass" / f"{name}.png" for name in val_files}
        masks = {name: path for name, path in masks.items() if path.is_file()}
        val_table = table if how != "masks" else _mask_table(root, val_names)
        found, findings = match_tags(
            val_files, val_table, classes.names, only=val_names, masks=masks, required=False
        )
        validation = _spread(found, section.val_images)
        if section.check and validation:
            validation = drop_broken(validation, findings)
            check_masks(validation)
        train = items
        problems = [f"validation: {line}" for line in findings.lines()[1:]]
    facts = {"data": f"VOC tree, split {split}", "tags": how, "validation_split": val_split}
    return _file_data(classes, train, validation, report, facts, problems)


def _file_data(
    classes: ClassSet,
    train: list[Item],
    validation: list[Item],
    report: DataReport,
    facts: dict[str, Any],
    problems: Sequence[str] = (),
) -> TrainingData:
    finish(report, train, classes.names)
    digest = hashlib.sha256("\n".join(classes.names).encode())
    for item in train:
        digest.update(f"{item.name}\0{item.tags}\n".encode(errors="surrogateescape"))
    facts = {
        **facts,
        "images": report.counts(),
        "images_per_class": report.per_class,
        "validation": len(validation),
    }
    messages = [*report.lines(), *problems, f"validation on {len(validation)} images"]
    source = FileSource(validation) if validation else None
    return TrainingData(classes, FileSource(train), source, facts, digest.hexdigest(), messages)


def _decodable(
    items: list[Item], report: DataReport, section: DataSection, progress: Callable[[str], None] | None
) -> list[Item]:
    return drop_broken(items, report, progress=progress) if section.check else items


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


def _hold_out(items: Sequence[Item], most: int) -> tuple[list[Item], list[Item]]:
    """Training and validation items, split by a hash of the name: adding images moves no other."""
    wanted = min(most, int(len(items) * _HELD_OUT))
    order = sorted(items, key=lambda item: hashlib.sha256(os.fsencode(item.name)).digest())
    held = {item.name for item in order[:wanted]}
    return [i for i in items if i.name not in held], [i for i in items if i.name in held]


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most ``most`` items, evenly over the list."""
    if len(items) <= most:
        return list(items)
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, most).round()]


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
            names.append(word.stem if word.suffix.lower() in IMAGE_SUFFIXES else word.name)
    return list(dict.fromkeys(names))


def _voc_files(root: Path, names: Sequence[str]) -> dict[str, Path | None]:
    folder = root / "JPEGImages"
    present = set(os.listdir(folder))
    endings = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
    return {
        name: next((folder / f"{name}{ending}" for ending in endings if f"{name}{ending}" in present), None)
        for name in names
    }


def _voc_tags(root: Path, tags: str, names: Sequence[str]) -> tuple[TagTable, str]:
    """Tags of a VOC tree: those that were asked for, else labels.csv, Annotations, the masks."""
    if tags and tags not in ("voc", "masks"):
        return load_tags(tags), Path(tags).name
    if tags != "masks":
        for name in _TAG_FILES:
            if not tags and (root / name).is_file():
                return load_tags(root / name), name
        if (root / "Annotations").is_dir():
            return load_tags(root / "Annotations"), "Annotations"
        if (root / "labels.csv").is_file():
            return load_tags(root / "labels.csv"), "labels.csv"
    if (root / "SegmentationClass").is_dir():
        return _mask_table(root, names), "masks"
    raise UsageError(f"{root} has no tags", fix="add --tags FILE; labels.csv and Annotations are looked for")


def _mask_table(root: Path, names: Sequence[str]) -> TagTable:
    """Tags that the masks imply; VOC's classes unless classes.txt names others."""
    path = root / "classes.txt"
    classes = load_classes(path).names if path.is_file() else VOC_CLASSES
    entries = {}
    for name in names:
        mask = root / "SegmentationClass" / f"{name}.png"
        if not mask.is_file():
            continue
        values = [int(v) for v in np.unique(read_mask(mask)) if v not in (BACKGROUND, IGNORE)]
        if strangers := [value for value in values if value > len(classes)]:
            raise WsssError(f"{mask} holds the value {strangers[0]}, but there are {len(classes)} classes")
        entries[name] = tuple(classes[value - 1] for value in values)
    return TagTable(tuple(classes), entries, source=str(root / "SegmentationClass"))
