"""ILSVRC localization: one class per image, and boxes on the validation images.

In ``ILSVRC2012_list``, ``train.txt`` holds lines of ``path label``, and ``val_folder_new.txt`` the same with
the corners of one or more boxes behind; labels count from 0 in the order of the synsets, and paths begin with
the synset. Images lie in ``train/SYNSET`` and ``val/SYNSET``. Where train.txt is missing (the published lists
come without), the folders below ``train`` say the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from wsss_rt.classes import ClassSet, load_classes
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
    existing_files,
    read_lines,
    refuse_tags,
)

LISTS = "ILSVRC2012_list"
_FILES = {"train": "train.txt", "val": "val_folder_new.txt"}
_ENDINGS = (".jpeg", ".jpg", ".png")


@dataclass
class _List:
    """Lines of a list.

    Attributes:
        source: file or folder, for messages.
        labels: path below the split's folder to label.
        boxes: path to boxes.
    """

    source: str
    labels: dict[str, int] = field(default_factory=dict)
    boxes: dict[str, tuple[Box, ...]] = field(default_factory=dict)


def is_ilsvrc(root: Path) -> bool:
    """Whether a folder holds the lists, beside the images or in ``ILSVRC2012_list``."""
    return (root / LISTS).is_dir() or _list_file(root, "val") is not None


def open_ilsvrc(root: Path, section: DataSection, progress: Progress = None) -> TrainingData:
    """Sources of an ILSVRC tree; validation images carry boxes (see :class:`Item`).

    Args:
        root: the tree.
        section: ``split`` and ``val_split`` are ``train`` and ``val``, and default to these. Classes are the
            synsets; ``classes`` names a file with other names, in the order of the labels.
        progress: told when a check takes a while.

    Raises:
        UsageError: no such split, or classes of another number.
        WsssError: a list that is missing, cannot be read, or contradicts the other one.
    """
    refuse_tags(section, "ILSVRC")
    split, val_split = section.split or "train", section.val_split or "val"
    for name in (split, val_split):
        if name not in _FILES:
            raise UsageError(f"no split {name!r} in {root}", fix=nearest(name, _FILES))
    lists = {split: _read(root, split)}
    asked = section.val_split or _list_file(root, val_split)
    if section.val_images and val_split != split and asked:
        lists[val_split] = _read(root, val_split)
    classes = _classes(section, list(lists.values()))
    train = _split(root, split, lists[split], classes)
    validation = _split(root, val_split, lists[val_split], classes) if len(lists) > 1 else None
    facts = {"data": f"ILSVRC tree, split {split}", "tags": Path(lists[split].source).name}
    return combine(classes, train, validation, section, facts, progress=progress)


def _list_file(root: Path, split: str) -> Path | None:
    candidates = (root / LISTS / _FILES[split], root / _FILES[split])
    return next((path for path in candidates if path.is_file()), None)


def _read(root: Path, split: str) -> _List:
    path = _list_file(root, split)
    if path is None and split == "train" and (root / split).is_dir():
        return _from_folders(root / split)
    if path is None:
        raise WsssError(
            f"{root} has no list of its {split} images",
            fix=f"put {_FILES[split]} into {LISTS}",
            code="bad_list",
        )
    found = _List(str(path))
    for line, (name, rest) in read_lines(path, 2):
        # some lists begin with the folder of the split
        name = PurePosixPath(name).as_posix().removeprefix(f"{split}/")
        try:
            label, *corners = (int(word) for word in rest.split())
        except ValueError as error:
            raise bad_line(path, line, f"expected are a path and whole numbers: {error}") from error
        if label < 0 or len(corners) % 4:
            why = f"the label is {label}" if label < 0 else f"{len(corners)} numbers make no boxes"
            raise bad_line(path, line, why)
        if name.startswith(("/", "../")) or "/../" in name:
            raise bad_line(path, line, f"{name} leads out of the image folder")
        if name in found.labels:
            raise bad_line(path, line, f"it lists {name} a second time")
        found.labels[name] = label
        if corners:
            groups = zip(*[iter(corners)] * 4, strict=True)
            found.boxes[name] = tuple((left, top, right, bottom) for left, top, right, bottom in groups)
    if not found.labels:
        raise WsssError(f"cannot read {path}", why="it lists no image", code="bad_list")
    return found


def _from_folders(folder: Path) -> _List:
    found = _List(str(folder))
    synsets = sorted(path for path in folder.iterdir() if path.is_dir())
    for label, synset in enumerate(synsets):
        for path in sorted(synset.iterdir()):
            if path.suffix.lower() in _ENDINGS:
                found.labels[f"{synset.name}/{path.name}"] = label
    if not found.labels:
        raise WsssError(f"{folder} holds no folder with images", code="no_images")
    return found


def _classes(section: DataSection, lists: list[_List]) -> ClassSet:
    """Names by label: those of ``data.classes``, else the synsets that the paths begin with."""
    synsets: dict[int, str] = {}
    for found in lists:
        for name, label in found.labels.items():
            synset = PurePosixPath(name).parts[0] if "/" in name else ""
            known = synsets.get(label, "")
            synsets[label] = known or synset
            if known and synset and known != synset:
                raise WsssError(
                    f"{found.source} gives {name} the label {label}",
                    why=f"which is {known} elsewhere",
                    fix="use lists of one and the same numbering",
                    code="bad_list",
                )
    count = max(synsets) + 1
    if section.classes:
        classes = load_classes(section.classes)
        if len(classes) < count:
            raise UsageError(
                f"{section.classes} names {len(classes)} classes, but labels go up to {count - 1}"
            )
    elif absent := [label for label in range(count) if not synsets.get(label)]:
        raise WsssError(
            f"{len(absent)} of {count} labels have no synset, e.g. {absent[0]}",
            why="no path of theirs begins with one",
            fix="give a file with the names in the order of the labels: --classes FILE",
            code="bad_list",
        )
    else:
        classes = ClassSet(tuple(synsets[label] for label in range(count)))
    return classes


def _split(root: Path, name: str, found: _List, classes: ClassSet) -> Split:
    names = list(found.labels)
    files = existing_files(names, (root / name, root))
    entries = {path: (classes.names[label],) for path, label in found.labels.items()}
    table = TagTable(classes.names, entries, source=found.source)
    return Split(name, names, files, table, boxes=found.boxes)
