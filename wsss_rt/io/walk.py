"""Walking folders and patterns without ever going in circles."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Identity = tuple[int, int]

_MAGIC = re.compile(r"[*?[]")


def has_magic(text: str) -> bool:
    """Whether ``text`` is a glob pattern."""
    return _MAGIC.search(text) is not None


@dataclass
class Walker:
    """Lists files below folders; every folder once, whatever links lead to it.

    ``os.walk(followlinks=True)`` and ``glob("**")`` follow a link to a parent until the path is too long, and
    two such links take them exponential time. Here a folder is known by its device and inode.

    Args:
        excluded: folders that are never entered.
        is_output: tells from the names in a folder whether a run wrote it; such a folder is left out.

    Attributes:
        visited: folders entered so far.
        unreadable: folders that could not be listed, with the reason.
        outputs: folders left out because of ``is_output``.
    """

    excluded: frozenset[Identity] = frozenset()
    is_output: Callable[[set[str]], bool] = lambda names: False
    visited: set[Identity | None] = field(default_factory=set)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def files(self, root: str) -> Iterator[str]:
        """Paths relative to ``root`` of all visible files below it, linked folders after the real ones."""
        linked: list[str] = []
        if self._enter(root):
            yield from self._below(root, "", linked, is_root=True)
        while linked:
            inner = linked.pop(0)
            if self._enter(os.path.join(root, inner)):
                yield from self._below(root, inner, linked)

    def _below(self, root: str, inner: str, linked: list[str], is_root: bool = False) -> Iterator[str]:
        pending = [(inner, is_root)]
        while pending:
            inner, is_root = pending.pop()
            entries = self.entries(os.path.join(root, inner))
            if not is_root and self.is_output({entry.name for entry in entries}):
                self.outputs.append(os.path.join(root, inner))
                # a file in it that is named all the same was not listed here
                self.visited.discard(folder_identity(os.path.join(root, inner)))
                continue
            folders: list[str] = []
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = os.path.join(inner, entry.name)
                if not is_folder(entry):
                    yield path
                elif entry.is_symlink():
                    # a folder keeps the name under which it really lies, where that is below the root too
                    linked.append(path)
                elif self._enter(os.path.join(root, path)):
                    folders.append(path)
            pending += [(path, False) for path in reversed(folders)]

    def entries(self, folder: str) -> list[os.DirEntry[str]]:
        """Entries of a folder by name; empty, and noted, where it cannot be read."""
        try:
            with os.scandir(folder or ".") as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.unreadable.append((folder, error.strerror or str(error)))
            return []

    def matches(self, pattern: str) -> Iterator[tuple[str, bool]]:
        """Paths that match a glob pattern, and whether each is a folder; ``**`` stands for any folders.

        As in a shell, a name with a leading dot needs a pattern with one.
        """
        head, parts = split_pattern(pattern)
        yield from self._match(head, parts, set())

    def _match(
        self, folder: str, parts: list[str], seen: set[tuple[int, int, int]]
    ) -> Iterator[tuple[str, bool]]:
        identity = folder_identity(folder)
        if identity is None or identity in self.excluded:
            return
        state = (*identity, len(parts))
        if state in seen:
            return
        seen.add(state)
        part, rest = parts[0], parts[1:]
        if part == "**":
            if not rest:
                yield folder, True
                return
            yield from self._match(folder, rest, seen)
        elif not has_magic(part):
            path = os.path.join(folder, part)
            if rest:
                yield from self._match(path, rest, seen)
            elif os.path.lexists(path):
                yield path, os.path.isdir(path)
            return
        for entry in self.entries(folder):
            if entry.name.startswith(".") and not part.startswith("."):
                continue
            path = os.path.join(folder, entry.name)
            if part == "**":
                if is_folder(entry):
                    yield from self._match(path, parts, seen)
            elif fnmatch.fnmatchcase(entry.name, part):
                if not rest:
                    yield path, is_folder(entry)
                elif is_folder(entry):
                    yield from self._match(path, rest, seen)

    def has_listed(self, folder: Identity, name: str) -> bool:
        """Whether :meth:`files` has given this file, in so far as it exists."""
        return folder in self.visited and not name.startswith(".")

    def _enter(self, folder: str) -> bool:
        """Whether a folder is new and wanted; from then on it counts as visited."""
        identity = folder_identity(folder)
        if identity is None:
            self.unreadable.append((folder, "it vanished"))
            return False
        if identity in self.visited or identity in self.excluded:
            return False
        self.visited.add(identity)
        return True


def folder_identity(folder: str) -> Identity | None:
    """What tells a folder from all others; None where there is none."""
    try:
        status = os.stat(folder or ".")
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """``entry.is_dir()``; False also for a link that leads in a circle."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def split_pattern(pattern: str) -> tuple[str, list[str]]:
    """The folder before the first wildcard, and the parts after it."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    head = "/".join(parts[:first])
    return ("/" + head if pattern.startswith("/") else head), parts[first:]
