"""CUB-200-2011: one bird per image, with its box.

``classes.txt`` holds a class and its name. The other lists share the image's number: ``images.txt`` (path
below ``images``), ``image_class_labels.txt`` (class), ``train_test_split.txt`` (1 for training) and
``bounding_boxes.txt`` (x, y, width, height). Official code joins them by line; here the numbers count.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsss_rt.classes import load_classes
from wsss_rt.errors import UsageError, WsssError, nearest
from wsss_rt.tags import TagTable
from wsss_rt.training.config import DataSection
from wsss_rt.training.data.sources import Box
from wsss_rt.training.data.splits import (
    Progress,
    Split,
    TrainingData,
    bad_line,
    combine,
    counted,
    existing_files,
    read_lines,
    refuse_tags,
)

IMAGES, LABELS, SPLITS = "images.txt", "image_class_labels.txt", "train_test_split.txt"
BOXES, CLASSES = "bounding_boxes.txt", "classes.txt"
# the number of train_test_split.txt for each
_SPLITS = {"train": "1", "test": "0"}


def is_cub(root: Path) -> bool:
    """Whether a folder looks like ``CUB_200_2011``."""
    return all((root / name).is_file() for name in (IMAGES, LABELS))


def open_cub(root: Path, section: DataSection, progress: Progress = None) -> TrainingData:
    """Sources of a CUB tree, with boxes (see :class:`Item`) where ``bounding_boxes.txt`` is there.

    Args:
        root: the tree.
        section: ``split`` and ``val_split`` are ``train`` and ``test``, and default to these. Classes are
            those of classes.txt; ``classes`` names a file with other names, in the same order.
        progress: told when a check takes a while.

    Raises:
        UsageError: no such split.
        WsssError: a list that is missing, cannot be read, or does not fit the others.
    """
    refuse_tags(section, "CUB")
    split, val_split = section.split or "train", section.val_split or "test"
    for name in (split, val_split):
        if name not in _SPLITS:
            raise UsageError(f"no split {name!r} in {root}", fix=nearest(name, _SPLITS))
    names = _column(root, IMAGES)
    numbers, own_names = _classes(root)
    classes = load_classes(section.classes or own_names)
    if len(classes) != len(numbers):
        raise UsageError(f"{section.classes} names {len(classes)} classes, {CLASSES} has {len(numbers)}")
    findings: list[str] = []
    table = _labels(root, names, dict(zip(numbers, classes.names, strict=True)), findings)
    belongs = _column(root, SPLITS)
    if strange := sorted(set(belongs.values()) - set(_SPLITS.values())):
        raise WsssError(f"{root / SPLITS} holds {strange[0]!r}", why="0 and 1 are known", code="bad_list")
    homeless = [name for number, name in names.items() if number not in belongs]
    findings += counted(homeless, f"images that {SPLITS} does not list, left out")
    boxes = _boxes(root, names, findings)

    def take(name: str, notes: Sequence[str] = ()) -> Split:
        wanted = [path for number, path in names.items() if belongs.get(number) == _SPLITS[name]]
        files = existing_files(wanted, (root / "images",))
        return Split(name, wanted, files, table, boxes=boxes, findings=notes)

    validation = take(val_split) if section.val_images and val_split != split else None
    facts = {"data": f"CUB tree, split {split}", "tags": LABELS}
    return combine(classes, take(split, findings), validation, section, facts, progress=progress)


def _column(root: Path, name: str) -> dict[str, str]:
    """A list of two columns: number of the image to the rest of the line."""
    path = root / name
    found: dict[str, str] = {}
    for line, (number, value) in read_lines(path, 2):
        if number in found:
            raise bad_line(path, line, f"it lists {number} a second time")
        found[number] = value
    return found


def _classes(root: Path) -> tuple[list[str], list[str]]:
    """Numbers as the lists write them, and names, in the order of the numbers."""
    found = _column(root, CLASSES)
    if any(not number.isdigit() for number in found):
        raise WsssError(f"cannot read {root / CLASSES}", why="a class has no number", code="bad_list")
    numbers = sorted(found, key=int)
    return numbers, [found[number] for number in numbers]


def _labels(root: Path, names: dict[str, str], classes: dict[str, str], findings: list[str]) -> TagTable:
    labels = _column(root, LABELS)
    if strange := [f"{value} (image {number})" for number, value in labels.items() if value not in classes]:
        what = "; ".join(counted(strange, f"labels that {CLASSES} does not list"))
        raise WsssError(f"cannot read {root / LABELS}", why=what, code="unknown_class")
    findings += counted([number for number in labels if number not in names], _unlisted("labels"))
    entries = {names[number]: (classes[value],) for number, value in labels.items() if number in names}
    return TagTable(tuple(classes.values()), entries, source=str(root / LABELS))


def _boxes(root: Path, names: dict[str, str], findings: list[str]) -> dict[str, tuple[Box, ...]]:
    path = root / BOXES
    if not path.is_file():
        findings.append(f"no {BOXES}: nothing can be localized")
        return {}
    boxes: dict[str, tuple[Box, ...]] = {}
    strange: list[str] = []
    for line, (number, *values) in read_lines(path, 5):
        try:
            # cut before they are added, as officially
            left, top, width, height = (int(float(value)) for value in values)
        except (ValueError, OverflowError) as error:
            raise bad_line(path, line, f"expected are number, x, y, width and height: {error}") from error
        if number in names:
            boxes[names[number]] = ((left, top, left + width, top + height),)
        else:
            strange.append(number)
    findings += counted(strange, _unlisted("boxes"))
    bare = [name for name in names.values() if name not in boxes]
    findings += counted(bare, "images without a box")
    return boxes


def _unlisted(what: str) -> str:
    return f"{what} of images that {IMAGES} does not list, left out"
