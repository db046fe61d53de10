"""Which images a run is about: inputs as a person writes them, to a sorted list without duplicates."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from wsss_rt.errors import UsageError
from wsss_rt.io.mask_names import mask_name, special_masks
from wsss_rt.io.names import printable
from wsss_rt.io.walk import Identity, Walker, folder_identity, has_magic, split_pattern

__all__ = ["SUFFIXES", "SourceImage", "SourceList", "find_images", "is_image_name", "mask_name"]

SUFFIXES = ("jpg", "jpeg", "jfif", "png", "bmp", "gif", "tif", "tiff", "webp", "ppm", "pgm", "pbm")
# images that a person would expect to be labelled, and that are not read: worth a note
FOREIGN_SUFFIXES = frozenset(
    "heic heif avif jxl jp2 svg eps psd exr dng cr2 cr3 nef arw orf rw2".split()  # noqa: SIM905
)
# what `label` writes; a folder with both is an earlier output, and its masks are no input
_OUTPUT_NAMES = frozenset({"manifest.jsonl", "run.json"})


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image to label.

    Attributes:
        path: where it lies; bytes that are no UTF-8 are surrogate escapes, as :func:`os.fsdecode` gives them.
        relative: its name in reports and in the manifest, unique in the run, with ``/`` between folders.
        mask: relative path of its mask, unique in the run.
    """

    path: Path
    relative: str
    mask: str


class SourceList(Sequence[SourceImage]):
    """Images sorted by ``relative``; about 100 bytes an image.

    Attributes:
        notes: what was left out, one sentence each.
    """

    def __init__(self, groups: Sequence[_Group], notes: Sequence[str] = ()) -> None:
        self.notes = tuple(notes)
        self._roots = [group.root or "" for group in groups]
        self._prefixes = _prefixes(groups)
        inner = [name for group in groups for name in group.names]
        owner = array("I", (index for index, group in enumerate(groups) for _ in group.names))
        order = sorted(range(len(inner)), key=lambda at: self._prefixes[owner[at]] + inner[at])
        self._inner = [inner[at] for at in order]
        self._owner = array("I", (owner[at] for at in order))
        self._masks = special_masks(self._relative(at) for at in range(len(order)))

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._image(at) for at in range(*index.indices(len(self)))]
        return self._image(range(len(self))[index])

    def __iter__(self) -> Iterator[SourceImage]:
        return map(self._image, range(len(self)))

    def relatives(self) -> Iterator[str]:
        """The names alone, in order."""
        return map(self._relative, range(len(self)))

    def _relative(self, at: int) -> str:
        return self._prefixes[self._owner[at]] + self._inner[at]

    def _image(self, at: int) -> SourceImage:
        path = os.path.join(self._roots[self._owner[at]], self._inner[at])
        relative = self._relative(at)
        return SourceImage(Path(path), relative, self._masks.get(relative) or mask_name(relative))


@dataclass
class _Group:
    """Images that came from one input.

    Attributes:
        label: what tells them from those of another input.
        root: the folder that ``names`` are relative to; None for named files, until all of them are known.
        names: images.
        candidates: paths that were named one by one, and may have been named twice.
    """

    label: str = ""
    root: str | None = None
    names: list[str] = field(default_factory=list)
    candidates: list[str] = field(default_factory=list)

    def adopt(self, files: Sequence[tuple[str, str]]) -> None:
        """Add named files, given as (absolute folder, name)."""
        if not files:
            return
        if self.root is None:
            self.root = os.path.commonpath({folder for folder, _ in files})
            self.label = _label(self.root)
            if not any(map(os.path.isabs, self.candidates)):
                # what was written relative to the working folder is shown so
                self.root = os.path.relpath(self.root)
        base = os.path.abspath(self.root)
        inner = {folder: os.path.relpath(folder, base) for folder in {folder for folder, _ in files}}
        for folder, name in files:
            self.names.append(name if inner[folder] == "." else f"{inner[folder]}/{name}")
        self.candidates = []


def find_images(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    exclude: Path | None = None,
    stdin: IO[bytes] | IO[str] | None = None,
) -> SourceList:
    """Find the images that ``inputs`` mean.

    An input is a file, a folder (searched recursively, hidden files left out), a glob pattern in which
    ``**`` stands for any folders, ``@list.txt`` (paths, one a line or separated by NUL), or ``-`` (such a
    list on stdin). Folders and patterns give files with the endings in :data:`SUFFIXES`; a file that is
    named is always taken. Every folder is entered once, whatever links lead to it, and every name in it is
    taken once. What is no readable file (a pipe, a dead link) is listed all the same, so that it is reported
    and not forgotten.

    Names are relative to the folder that was given, or to the part of a pattern before its first wildcard;
    for files that were named, to the deepest folder that holds them all. Where two inputs hold the same
    name, every input's names begin with the name of its folder.

    Args:
        inputs: as above; paths in a list are relative to the working folder.
        exclude: the output folder, whose content is never input.
        stdin: where ``-`` reads from; bytes or text.

    Raises:
        UsageError: an input does not exist, or there is no image at all.
    """
    finder = _Finder(exclude)
    for given in inputs:
        finder.add(os.fspath(given), stdin)
    found = SourceList(finder.groups(), finder.notes())
    if not len(found):
        where = ", ".join(printable(os.fspath(given)) for given in inputs) or "no input"
        raise UsageError(
            f"no images in {where}",
            why="; ".join((*found.notes, "looked for files ending in ." + " .".join(SUFFIXES))),
        )
    return found


class _Finder:
    def __init__(self, exclude: Path | None) -> None:
        self._exclude = os.path.realpath(exclude) if exclude is not None else None
        identity = None if exclude is None else folder_identity(os.fspath(exclude))
        excluded = frozenset() if identity is None else frozenset([identity])
        self._walker = Walker(excluded, lambda names: names >= _OUTPUT_NAMES)
        self._named = _Group()
        self._groups = [self._named]
        self._foreign: Counter[str] = Counter()
        self._own_outputs = 0

    def add(self, given: str, stdin: IO[bytes] | IO[str] | None) -> None:
        if given == "-":
            if stdin is None:
                raise UsageError("'-' reads paths from stdin, and there is none")
            self._add_list(stdin.read())
        elif given.startswith("@"):
            try:
                with open(given[1:], "rb") as file:
                    self._add_list(file.read())
            except OSError as error:
                raise UsageError(
                    f"cannot read the list {printable(given[1:])}",
                    why=error.strerror or "",
                    fix="a file whose name begins with @ is written ./@name",
                ) from error
        elif os.path.isdir(given):
            self._add_folder(given)
        elif os.path.lexists(given):
            self._named.candidates.append(given)
        elif has_magic(given):
            self._add_pattern(given)
        else:
            raise UsageError(f"no file or folder {printable(given)}", fix="check the spelling")

    def groups(self) -> list[_Group]:
        """All groups that hold images; named files that a folder gave already are dropped."""
        seen: set[tuple[Identity, str]] = set()
        # most named files lie in few folders, and asking the system about each would take minutes
        known: dict[str, tuple[str, Identity | None, bool]] = {}
        for group in self._groups:
            kept: list[tuple[str, str]] = []
            for path in dict.fromkeys(group.candidates):
                given, name = os.path.split(path)
                if given not in known:
                    folder = _absolute(given)
                    known[given] = (folder, folder_identity(folder), self._is_output(folder))
                folder, identity, is_output = known[given]
                if is_output:
                    self._own_outputs += 1
                elif identity is None:
                    kept.append((folder, name))
                elif (identity, name) not in seen and not self._was_listed(identity, name):
                    seen.add((identity, name))
                    kept.append((folder, name))
            group.adopt(kept)
        return [group for group in self._groups if group.names]

    def notes(self) -> list[str]:
        notes = [f"cannot list {printable(folder)}: {why}" for folder, why in self._walker.unreadable]
        notes += [f"left out {printable(folder)}: an earlier output" for folder in self._walker.outputs]
        if self._own_outputs:
            notes.append(f"left out {self._own_outputs} files in the output folder")
        notes += [
            f"left out {count} .{suffix} files: not supported, convert them to PNG or JPEG"
            for suffix, count in sorted(self._foreign.items())
        ]
        return notes

    def _add_list(self, content: bytes | str) -> None:
        raw = os.fsencode(content) if isinstance(content, str) else content
        separator = b"\0" if b"\0" in raw else b"\n"
        group = _Group()
        for entry in raw.removeprefix(b"\xef\xbb\xbf").split(separator):
            path = os.fsdecode(entry if separator == b"\0" else entry.removesuffix(b"\r"))
            if path and os.path.isdir(path):
                self._add_folder(path)
            elif path:
                # one that does not exist is reported with the others, as one failed image
                group.candidates.append(path)
        self._groups.append(group)

    def _add_folder(self, folder: str) -> None:
        if self._exclude is not None and os.path.realpath(folder) == self._exclude:
            raise UsageError(
                f"the output folder {printable(folder)} is also an input",
                why="its masks would be labelled in turn",
                fix="choose another --out",
            )
        if not os.access(folder, os.R_OK | os.X_OK):
            raise UsageError(f"cannot list the folder {printable(folder)}", why="permission denied")
        names = [name for name in self._walker.files(folder) if self._is_wanted(name)]
        self._groups.append(_Group(_label(folder), folder, names))

    def _add_pattern(self, pattern: str) -> None:
        # what a pattern spells out is taken, as if the shell had expanded it
        last = pattern.rsplit("/", 1)[-1]
        spelled = "." in last and not has_magic(last.rsplit(".", 1)[-1])
        root = split_pattern(pattern)[0]
        group = _Group(_label(root), root)
        count = 0
        for path, is_folder in self._walker.matches(pattern):
            count += 1
            if is_folder:
                inner = os.path.relpath(path, root or ".")
                files = (os.path.normpath(os.path.join(inner, name)) for name in self._walker.files(path))
                group.names += [name for name in files if self._is_wanted(name)]
            elif spelled or self._is_wanted(path):
                group.candidates.append(path)
        if not count:
            raise UsageError(f"nothing matches {printable(pattern)}")
        self._groups.append(group)

    def _is_wanted(self, name: str) -> bool:
        suffix = name.rpartition(".")[2].lower()
        if suffix in FOREIGN_SUFFIXES:
            self._foreign[suffix] += 1
        return is_image_name(name)

    def _was_listed(self, folder: Identity, name: str) -> bool:
        return is_image_name(name) and self._walker.has_listed(folder, name)

    def _is_output(self, folder: str) -> bool:
        if self._exclude is None:
            return False
        real = os.path.realpath(folder)
        return real == self._exclude or real.startswith(self._exclude + os.sep)


def is_image_name(name: str) -> bool:
    """Whether the ending is one of :data:`SUFFIXES`, in any case."""
    stem, dot, suffix = os.path.basename(name).rpartition(".")
    return bool(stem) and suffix.lower() in SUFFIXES


def _prefixes(groups: Sequence[_Group]) -> list[str]:
    """What stands before the names of every group: nothing, unless two groups hold the same name."""
    seen: set[str] = set()
    for group in groups:
        if not seen.isdisjoint(group.names):
            break
        seen.update(group.names)
    else:
        return ["" for _ in groups]
    prefixes: list[str] = []
    for group in groups:
        prefix, number = group.label, 1
        while f"{prefix}/" in prefixes:
            number += 1
            prefix = f"{group.label}-{number}"
        prefixes.append(f"{prefix}/")
    return prefixes


def _label(folder: str) -> str:
    return os.path.basename(os.path.abspath(folder)) or "root"


def _absolute(folder: str) -> str:
    """The folder's absolute path; ``..`` is resolved on the disk, as a link may stand before it."""
    return os.path.realpath(folder) if ".." in folder.split("/") else os.path.abspath(folder)
