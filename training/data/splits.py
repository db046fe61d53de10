"""From the lists of a data set, whatever its layout, to checked sources for training and validation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsss_rt.classes import ClassSet
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.tags import TagTable
from wsss_rt.training.config import DataSection
from wsss_rt.training.data.sources import Box, DrawnMask, FileSource, Item, Source
from wsss_rt.training.data.validate import DataReport, check_masks, drop_broken, finish, match_tags, some

Progress = Callable[[str], None] | None
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


@dataclass(frozen=True)
class Split:
    """One list of a data set.

    Attributes:
        name: as the data set calls it.
        names: the images that it lists, in its order.
        files: those of them that exist.
        tags: at least of the images that exist.
        masks: where there are any.
        boxes: true boxes, where there are any.
        findings: what its files say that does not fit together, a sentence each.
    """

    name: str
    names: Sequence[str]
    files: Mapping[str, Path]
    tags: TagTable
    masks: Mapping[str, Path | DrawnMask] = field(default_factory=dict)
    boxes: Mapping[str, tuple[Box, ...]] = field(default_factory=dict)
    findings: Sequence[str] = ()


def combine(
    classes: ClassSet,
    train: Split,
    validation: Split | None,
    section: DataSection,
    facts: dict[str, Any],
    *,
    progress: Progress = None,
) -> TrainingData:
    """Check the lists against the files and each other.

    Args:
        classes: of the model.
        train, validation: the lists; without one for validation, images are held out of the training ones.
        section: its ``val_images`` and ``check``.
        facts: what to say of the data.
        progress: told when a check takes a while.

    Raises:
        UsageError: unknown classes.
        WsssError: an image stands in both lists, or images and tags do not fit together.
    """
    items, report = match_tags(
        train.files, train.tags, classes.names, masks=train.masks, boxes=train.boxes, only=train.names
    )
    items = decodable(items, report, section, progress)
    problems = [f"warning: {line}" for line in train.findings]
    held: list[Item] = []
    if validation is not None and section.val_images:
        if both := sorted(set(validation.names) & {item.name for item in items}):
            raise WsssError(
                f"{len(both)} images stand in both {train.name} and {validation.name}, e.g. {both[0]}",
                why="validation would measure what training has seen",
                code="split_overlap",
            )
        held, found = _validation_items(classes, validation, section)
        problems += found
    elif section.val_images:
        items, held = hold_out(items, section.val_images)
    facts = {**facts, "validation_split": validation.name if validation is not None else ""}
    return file_data(classes, items, held, report, facts, problems)


def file_data(
    classes: ClassSet,
    train: list[Item],
    validation: list[Item],
    report: DataReport,
    facts: dict[str, Any],
    problems: Sequence[str] = (),
) -> TrainingData:
    """Sources over the images, with what is to be said of them.

    Args:
        classes: of the model.
        train, validation: the images.
        report: of the training images; completed here.
        facts: what to say of the data.
        problems: further messages.
    """
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
    source = FileSource(validation, wide=classes.wide) if validation else None
    return TrainingData(
        classes, FileSource(train, wide=classes.wide), source, facts, digest.hexdigest(), messages
    )


def decodable(items: list[Item], report: DataReport, section: DataSection, progress: Progress) -> list[Item]:
    """The images that decode, where ``data.check`` asks for it."""
    return drop_broken(items, report, progress=progress) if section.check else items


def hold_out(items: Sequence[Item], most: int) -> tuple[list[Item], list[Item]]:
    """Training and validation items, split by a hash of the name: adding images moves no other."""
    wanted = min(most, int(len(items) * _HELD_OUT))
    order = sorted(items, key=lambda item: hashlib.sha256(os.fsencode(item.name)).digest())
    held = {item.name for item in order[:wanted]}
    return [i for i in items if i.name not in held], [i for i in items if i.name in held]


def existing_files(names: Sequence[str], folders: Sequence[Path]) -> dict[str, Path]:
    """The files of these relative names below the first of the folders that has them.

    Every folder is listed once: asking for a million files one by one takes minutes.
    """
    listings: dict[Path, set[str]] = {}
    found: dict[str, Path] = {}
    for name in names:
        for folder in folders:
            path = folder / name
            if path.parent not in listings:
                listings[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
            if path.name in listings[path.parent]:
                found[name] = path
                break
    return found


def read_lines(path: Path, words: int) -> list[tuple[int, list[str]]]:
    """Lines of a list with their numbers, split at blanks into at most ``words``; empty ones are left out.

    Raises:
        WsssError: no such file, not text, or a line of fewer words.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise WsssError(f"cannot read {path}", why=error.strerror or str(error), code="bad_list") from error
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        parts = line.split(maxsplit=words - 1)
        if parts and len(parts) < words:
            raise bad_line(path, number, f"expected are {words} words, not {line.strip()[:60]!r}")
        if parts:
            lines.append((number, [part.rstrip() for part in parts]))
    return lines


def bad_line(path: Path, number: int, why: str) -> WsssError:
    """The error for a line that cannot be understood."""
    return WsssError(f"cannot read line {number} of {path}", why=why, code="bad_list")


def refuse_tags(section: DataSection, kind: str) -> None:
    """The error for ``--tags`` on a data set that brings its own.

    Raises:
        UsageError: if tags were given.
    """
    if section.tags:
        raise UsageError(
            f"{kind} brings its own tags",
            fix="leave out --tags, or read the images as a folder: --set data.layout=folder",
        )


def counted(names: Sequence[str], what: str) -> list[str]:
    """A finding with its number and the first names; nothing where there are none."""
    return [f"{len(names)} {what}: {some(names)}"] if names else []


def _validation_items(classes: ClassSet, split: Split, section: DataSection) -> tuple[list[Item], list[str]]:
    found, report = match_tags(
        split.files,
        split.tags,
        classes.names,
        masks=split.masks,
        boxes=split.boxes,
        only=split.names,
        required=False,
    )
    items = _spread(found, section.val_images)
    if section.check and items:
        items = drop_broken(items, report)
        check_masks([item for item in items if item.mask is not None], wide=classes.wide)
    findings = [*report.lines()[1:], *(f"warning: {line}" for line in split.findings)]
    return items, [f"validation: {line}" for line in findings]


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most ``most`` items, evenly over the list."""
    if len(items) <= most:
        return list(items)
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, most).round()]
