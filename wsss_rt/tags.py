"""Image-level tags: which classes an image shows, read from the formats in which people keep them."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from wsss_rt.classes import COCO_CLASSES, VOC_CLASSES
from wsss_rt.errors import UsageError, WsssError, nearest

FOLDERS = "folders"
_IMAGE_COLUMNS = {"image", "images", "id", "file", "filename", "file_name", "path", "name", "image_id"}
_TAG_COLUMNS = {"tags", "tag", "labels", "label", "classes", "class"}
_ZERO_ONE = {"0": False, "1": True, "0.0": False, "1.0": True, "": False}
_SHOWN = 5


@dataclass(frozen=True)
class TagTable:
    """Tags per image.

    Attributes:
        classes: class names; in the order given, in a one-hot header's order, else sorted.
        entries: key as the source writes it (forward slashes) to tags, in the source's order.
        source: what the table was read from, for messages.
        from_folders: an image's tag is the name of the folder that it lies in; ``entries`` is empty.
    """

    classes: tuple[str, ...]
    entries: Mapping[str, tuple[str, ...]]
    source: str = "tags"
    from_folders: bool = False
    _by_name: Mapping[str, list[str]] = field(init=False, repr=False, compare=False)
    _by_stem: Mapping[str, list[str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name: dict[str, list[str]] = {}
        by_stem: dict[str, list[str]] = {}
        for key in self.entries:
            by_name.setdefault(PurePosixPath(key).name, []).append(key)
            by_stem.setdefault(_stem(key), []).append(key)
        object.__setattr__(self, "_by_name", by_name)
        object.__setattr__(self, "_by_stem", by_stem)

    def __len__(self) -> int:
        return len(self.entries)

    def keys(self) -> tuple[str, ...]:
        """The images as the source names them."""
        return tuple(self.entries)

    def lookup(self, relative_path: str) -> tuple[str, ...] | None:
        """Tags of an image.

        Args:
            relative_path: path below the image folder; matched as a whole, then by file name, then by stem.

        Returns:
            The tags, possibly none of them; None where the source does not know the image.

        Raises:
            WsssError: several entries fit equally well, or a folder's name is not a class.
        """
        if self.from_folders:
            return self._folder_tag(relative_path)
        key = self.match(relative_path)
        return None if key is None else self.entries[key]

    def match(self, relative_path: str) -> str | None:
        """The entry that belongs to an image, or None; same rules and errors as :meth:`lookup`."""
        path = _normal_key(relative_path)
        if path in self.entries:
            return path
        name, stem = PurePosixPath(path).name, PurePosixPath(path).stem
        # a key written without an ending means any ending, so it goes before one with another ending
        bare = [key for key in self._by_stem.get(stem, []) if _stem(key) == PurePosixPath(key).name]
        for candidates in (self._by_name.get(name, []), bare or self._by_stem.get(stem, [])):
            if len(candidates) > 1:
                raise WsssError(
                    f"the tags of {relative_path} are ambiguous in {self.source}",
                    why=f"{_some(candidates)} fit equally well",
                    fix="list the image by its path below the image folder",
                    code="ambiguous_tags",
                )
            if candidates:
                return candidates[0]
        return None

    def _folder_tag(self, relative_path: str) -> tuple[str, ...] | None:
        parent = PurePosixPath(_normal_key(relative_path)).parent.name
        if not parent:
            return None
        if self.classes and parent not in self.classes:
            raise WsssError(
                f"{relative_path} lies in the folder {parent!r}, which is not a class",
                fix=nearest(parent, self.classes),
                code="unknown_class",
            )
        return (parent,)


def load_tags(source: str | Path, *, classes: Sequence[str] | None = None) -> TagTable:
    """Read tags.

    Args:
        source: CSV with columns ``image,tags`` (tags split by ``;``) or one 0/1 column per class, JSON
            ``{image: [tags]}`` or ``[{"image": .., "tags": [..]}]``, a folder of VOC XML annotations, a
            ``cls_labels.npy`` (name to 0/1 vector; read without unpickling), or the word ``folders`` (an
            image's tag is the name of the folder that it lies in).
        classes: the only names allowed. None takes the names that occur. Vectors, which hold no names, stand
            for VOC's or COCO's classes by their length, else for ``classes`` in that order.

    Raises:
        UsageError: no such source, or tags that are not among ``classes``; they are counted and named.
        WsssError: the source cannot be read, or its content is not in one of these formats.
    """
    allowed = None if classes is None else tuple(classes)
    if str(source) == FOLDERS:
        return TagTable(allowed or (), {}, source="folder names", from_folders=True)
    path = Path(source)
    try:
        if path.is_dir():
            names, entries = _read_voc_xml(path)
        elif path.is_file():
            if path.suffix.lower() == ".npy":
                return _from_vectors(path, allowed)
            text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
            if path.suffix.lower() == ".json" or text.lstrip()[:1] in {"{", "["}:
                names, entries = _read_json(text, path)
            else:
                names, entries = _read_csv(text, path)
        else:
            raise UsageError(
                f"no tags at {path}",
                fix="give a csv, json or cls_labels.npy file, a folder of VOC XML, or the word 'folders'",
            )
    except OSError as error:
        raise _bad(path, error.strerror or str(error)) from error
    if not entries:
        raise _bad(path, "it lists no image")
    if allowed is not None:
        _refuse_unknown(entries, allowed, path)
    return TagTable(allowed if allowed is not None else names, entries, source=str(path))


def _refuse_unknown(entries: Mapping[str, tuple[str, ...]], allowed: tuple[str, ...], path: Path) -> None:
    counts: dict[str, int] = {}
    for tags in entries.values():
        for tag in tags:
            if tag not in allowed:
                counts[tag] = counts.get(tag, 0) + 1
    if counts:
        shown = _some([f"{tag!r} ({count} images)" for tag, count in counts.items()])
        raise UsageError(
            f"{path} uses {len(counts)} unknown {'class' if len(counts) == 1 else 'classes'}: {shown}",
            fix=f"for {next(iter(counts))!r}: {nearest(next(iter(counts)), allowed)}",
            code="unknown_class",
        )


def _read_csv(text: str, path: Path) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True) if any(row)]
    except csv.Error as error:
        raise _bad(path, f"not CSV: {error}") from error
    if not rows:
        raise _bad(path, "it is empty")
    header = [cell.strip() for cell in rows[0]]
    lower = [cell.lower() for cell in header]
    image_column = next((i for i, cell in enumerate(lower) if cell in _IMAGE_COLUMNS), 0)
    tag_column = next((i for i, cell in enumerate(lower) if i != image_column and cell in _TAG_COLUMNS), None)
    if tag_column is not None:
        return _from_pairs(_tag_rows(rows, image_column, tag_column, path, skip=1))
    if len(header) >= 2 and lower[image_column] in _IMAGE_COLUMNS:
        return _one_hot(rows, header, image_column, path)
    if len(header) == 2 and PurePosixPath(header[0]).suffix:
        return _from_pairs(_tag_rows(rows, 0, 1, path, skip=0))
    raise _bad(
        path, f"its first line is {delimiter.join(header)[:80]!r}; expected 'image,tags' or 'image,<class>,…'"
    )


def _tag_rows(
    rows: list[list[str]], image_column: int, tag_column: int, path: Path, *, skip: int
) -> Iterable[tuple[str, list[str]]]:
    for line, row in enumerate(rows[skip:], start=skip + 1):
        if len(row) <= image_column or not row[image_column].strip():
            raise _bad(path, f"row {line} names no image")
        if len(row) > len(rows[0]) and any(cell.strip() for cell in row[len(rows[0]) :]):
            extra = ",".join(row)[:80]
            raise _bad(path, f"row {line} has too many columns: {extra!r}; separate tags by ';'")
        yield row[image_column], (row[tag_column] if len(row) > tag_column else "").split(";")


def _one_hot(
    rows: list[list[str]], header: list[str], image_column: int, path: Path
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise _bad(path, f"row {line} has {len(row)} columns, the header has {len(header)}")
    # columns such as `split` hold words: they describe the image and are no class
    columns = [
        i
        for i in range(len(header))
        if i != image_column and all(row[i].strip() in _ZERO_ONE for row in rows[1:])
    ]
    if not columns:
        raise _bad(path, "no column holds only 0 and 1, and none is called 'tags'")
    entries: dict[str, tuple[str, ...]] = {}
    for line, row in enumerate(rows[1:], start=2):
        key = _normal_key(row[image_column])
        if key in entries:
            raise _bad(path, f"row {line} lists {key} a second time")
        entries[key] = tuple(header[i] for i in columns if _ZERO_ONE[row[i].strip()])
    return tuple(header[i] for i in columns), entries


def _read_json(text: str, path: Path) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    try:
        raw: Any = json.loads(text)
    except ValueError as error:
        raise _bad(path, f"not JSON: {error}") from error
    pairs: list[tuple[str, list[str]]] = []
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for key, value in items:
        image, tags = key, value
        if isinstance(raw, list):
            if not isinstance(value, dict) or not {"image", "tags"} <= value.keys():
                raise _bad(path, f'entry {key} is not {{"image": .., "tags": [..]}}')
            image, tags = value["image"], value["tags"]
        if isinstance(tags, str):
            tags = tags.split(";")
        if (
            not isinstance(image, str)
            or not isinstance(tags, list)
            or any(not isinstance(t, str) for t in tags)
        ):
            raise _bad(path, f"the tags of {image!r} are not a list of names")
        pairs.append((image, tags))
    return _from_pairs(pairs)


def _from_vectors(path: Path, allowed: tuple[str, ...] | None) -> TagTable:
    from wsss_rt.label_vectors import read_label_vectors

    vectors = read_label_vectors(path)
    width = len(next(iter(vectors.values())))
    sets: tuple[tuple[str, ...], ...] = (VOC_CLASSES, COCO_CLASSES)
    known = next((names for names in sets if len(names) == width), None)
    # names of one's own can stand in any number; those of a known set stand in its order, however they came
    if allowed is not None and len(allowed) == width and set(allowed) != set(known or ()):
        known = allowed
    if known is None:
        raise _bad(
            path, f"its vectors have {width} numbers and no names; give {width} classes in their order"
        )
    entries = {
        _normal_key(name): tuple(known[i] for i in vector.nonzero()[0]) for name, vector in vectors.items()
    }
    if allowed is not None:
        _refuse_unknown(entries, allowed, path)
    return TagTable(allowed if allowed is not None else known, entries, source=str(path))


def _read_voc_xml(folder: Path) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise _bad(folder, "the folder holds no .xml file")
    pairs = []
    for file in files:
        data = file.read_bytes()
        # annotations need no entities; refusing them closes the door to entity bombs
        if b"<!ENTITY" in data or b"<!DOCTYPE" in data:
            raise _bad(file, "it declares a DOCTYPE, which VOC annotations do not have")
        try:
            root = ElementTree.fromstring(data)
        except ElementTree.ParseError as error:
            raise _bad(file, f"not XML: {error}") from error
        pairs.append((file.stem, [item.text or "" for item in root.findall("object/name")]))
    return _from_pairs(pairs)


def _from_pairs(pairs: Iterable[tuple[str, list[str]]]) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Collect (image, tags); an image on several rows has the tags of all of them."""
    entries: dict[str, tuple[str, ...]] = {}
    for image, tags in pairs:
        key = _normal_key(image)
        named = [tag.strip() for tag in tags if tag.strip()]
        entries[key] = tuple(dict.fromkeys([*entries.get(key, ()), *named]))
    return tuple(sorted({tag for tags in entries.values() for tag in tags})), entries


def _normal_key(path: str) -> str:
    return PurePosixPath(path.strip()).as_posix()


def _stem(key: str) -> str:
    """File name without ending, where it has one: ``2007_000.5`` ends in a number, not in an ending."""
    name = PurePosixPath(key)
    looks_like_ending = (
        2 <= len(name.suffix) <= 5 and name.suffix[1:].isalnum() and not name.suffix[1:].isdigit()
    )
    return name.stem if looks_like_ending else name.name


def _some(items: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    rest = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _bad(path: Path, why: str) -> WsssError:
    return WsssError(f"cannot read tags from {path}", why=why, code="bad_tags")
