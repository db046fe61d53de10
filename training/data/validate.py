"""Checks of images and tags that are over before anything long starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from wsss_rt.errors import UsageError, WsssError, nearest
from wsss_rt.tags import TagTable
from wsss_rt.training.data.sources import Box, DrawnMask, FileSource, Item, read_rgb

_SHOWN = 5


@dataclass
class DataReport:
    """What was found wrong, by kind; every kind but the last leaves the image out.

    Attributes:
        listed: entries of the tags (or of the split).
        used: images that training or validation will see.
        missing: listed, but no such file.
        untagged: a file that the tags do not list.
        empty: listed without any tag.
        broken: cannot be decoded, with the reason.
        without_images: classes that no image shows.
        per_class: images per class.
    """

    listed: int = 0
    used: int = 0
    missing: list[str] = field(default_factory=list)
    untagged: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    without_images: list[str] = field(default_factory=list)
    per_class: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The summary, one finding per line."""
        found = [f"{self.used} of {self.listed} images with tags, {len(self.per_class)} classes"]
        for names, text in (
            (self.missing, "listed in the tags, but missing"),
            (self.untagged, "not in the tags, left out"),
            (self.empty, "listed without a tag, left out"),
            (self.broken, "cannot be decoded, left out"),
            (self.without_images, "classes without an image"),
        ):
            if names:
                found.append(f"warning: {len(names)} {text}: {some(names)}")
        return found

    def counts(self) -> dict[str, int]:
        """Numbers alone, for the run's config."""
        kinds = ("missing", "untagged", "empty", "broken", "without_images")
        return {"listed": self.listed, "used": self.used} | {kind: len(getattr(self, kind)) for kind in kinds}


def match_tags(
    files: Mapping[str, Path],
    table: TagTable,
    classes: Sequence[str],
    *,
    masks: Mapping[str, Path | DrawnMask] | None = None,
    boxes: Mapping[str, tuple[Box, ...]] | None = None,
    only: Sequence[str] | None = None,
    required: bool = True,
) -> tuple[list[Item], DataReport]:
    """Bring files and tags together.

    Args:
        files: image files by their path below the data folder.
        table: the tags.
        classes: the model's classes, in order.
        masks: masks by the same names.
        boxes: true boxes by the same names.
        only: the names to use, e.g. of a split; entries of the table beyond them are no finding.
        required: whether finding next to nothing is an error.

    Raises:
        UsageError: a tag that is not among ``classes``; all of them are counted, the first ones named.
        WsssError: nothing is left, or most of what the tags list is missing.
    """
    report = DataReport()
    index = {name: number for number, name in enumerate(classes)}
    wanted = list(only) if only is not None else list(files)
    unknown: dict[str, int] = {}
    owners: dict[str, str] = {}
    items: list[Item] = []
    for name in wanted:
        if name not in files:
            report.missing.append(name)
            continue
        tags = table.lookup(name)
        if tags is None:
            report.untagged.append(name)
            continue
        key = name if table.from_folders else table.match(name)
        if key is not None and owners.setdefault(key, name) != name:
            raise WsssError(
                f"{owners[key]} and {name} both match the entry {key!r} of {table.source}",
                fix="list images by their path below the image folder",
                code="ambiguous_tags",
            )
        for tag in tags:
            if tag not in index:
                unknown[tag] = unknown.get(tag, 0) + 1
        if not tags:
            report.empty.append(name)
            continue
        numbers = tuple(sorted({index[tag] for tag in tags if tag in index}))
        found = (masks or {}).get(name), (boxes or {}).get(name, ())
        items.append(Item(files[name], name, numbers, *found))
    if unknown:
        refuse_unknown(unknown, classes, table.source)
    if only is None and not table.from_folders:
        report.missing.extend(key for key in table.entries if key not in owners)
    report.listed = len(wanted) if only is not None or table.from_folders else len(table)
    if required and (len(report.missing) > report.listed // 2 or not items):
        _refuse(report, table.source)
    return items, report


def refuse_unknown(unknown: Mapping[str, int], classes: Sequence[str], source: str) -> None:
    """The error for tags that are no class: all counted, the first ones named.

    Raises:
        UsageError: always.
    """
    shown = some([f"{tag!r} ({count} images)" for tag, count in unknown.items()])
    kinds = "class" if len(unknown) == 1 else "classes"
    raise UsageError(
        f"{source} uses {len(unknown)} unknown {kinds}: {shown}",
        fix=f"for {next(iter(unknown))!r}: {nearest(next(iter(unknown)), classes)}",
        code="unknown_class",
    )


def drop_broken(
    items: Sequence[Item],
    report: DataReport,
    *,
    threads: int = 2,
    progress: Callable[[str], None] | None = None,
) -> list[Item]:
    """Decode every image once, and keep those that decode; the others go into the report with their reason.

    Half-written JPEGs pass every check of their header, so nothing less than decoding finds them.
    """
    if progress is not None and len(items) > 2000:
        progress(f"decoding {len(items)} images once to find broken ones (data.check = false skips this)")

    def reason(item: Item) -> str | None:
        try:
            read_rgb(item.path, item.name)
        except WsssError as error:
            return error.why
        return None

    with ThreadPoolExecutor(threads) as pool:
        reasons = list(pool.map(reason, items))
    report.broken.extend(f"{item.name} ({why})" for item, why in zip(items, reasons, strict=True) if why)
    kept = [item for item, why in zip(items, reasons, strict=True) if not why]
    if not kept:
        raise WsssError("no image can be decoded", why=some(report.broken), code="no_images")
    return kept


def check_masks(items: Sequence[Item], *, wide: bool = False) -> None:
    """Read images with their masks once, so that validation cannot fail in the middle of the night.

    Raises:
        WsssError: a mask cannot be read, or has another size than its image.
    """
    source = FileSource(items, wide=wide)
    for index in range(len(items)):
        source.load(index, mask=True)


def finish(report: DataReport, items: Sequence[Item], classes: Sequence[str]) -> None:
    """Count what is used, per class."""
    report.used = len(items)
    report.per_class = dict.fromkeys(classes, 0)
    for item in items:
        for tag in item.tags:
            report.per_class[classes[tag]] += 1
    report.without_images = [name for name, count in report.per_class.items() if not count]


def some(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _refuse(report: DataReport, source: str) -> None:
    if report.missing:
        raise WsssError(
            f"{len(report.missing)} of {report.listed} images that {source} lists are missing",
            why=some(report.missing),
            fix="give the folder that holds them as --data; names are matched by path, file name or stem",
            code="missing_images",
        )
    why = (
        f"no image in {source} has a tag"
        if report.empty
        else f"{source} lists none of: {some(report.untagged)}"
    )
    raise WsssError("there is no image with tags to train on", why=why, code="no_images")
