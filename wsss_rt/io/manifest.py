"""The manifest: a line of JSON per image, appended as images finish, so that a killed run can go on.

A name that is no UTF-8 cannot stand in JSON. Such a value is stored readably, with backslash escapes, beside
its exact bytes under the same key with ``_b64`` appended; readers here put the exact name back.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import math
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from wsss_rt.errors import WsssError
from wsss_rt.io.atomic import StrPath, atomic_file, flush, writing_error
from wsss_rt.io.lock import RunLock
from wsss_rt.io.names import printable

__all__ = ["Latest", "Manifest", "Record", "RunLock", "config_hash"]

Record = dict[str, Any]


class Manifest:
    """Append-only JSON lines; the last record of an image is the one that counts.

    Writing belongs under the :class:`RunLock` of the folder. Appending is thread-safe.

    Args:
        path: the file; made on the first append.
        key: the field that identifies an image.
        sync_seconds: flush to the disk at most this often; 0 flushes every record. What a power cut takes is
            relabelled on resume; a killed process loses nothing either way.

    Attributes:
        damaged: unreadable lines that the last :meth:`load` or :meth:`latest` passed over.
    """

    def __init__(self, path: StrPath, *, key: str = "path", sync_seconds: float = 0.0) -> None:
        self.path = os.fspath(path)
        self.key = key
        self.sync_seconds = sync_seconds
        self.damaged = 0
        self._descriptor: int | None = None
        self._synced = 0.0
        self._dirty = False
        self._mutex = threading.Lock()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record, as one write.

        Raises:
            WsssError: code ``disk_full`` and its siblings; the file still ends with the last whole record.
        """
        line = encode_record(record)
        with self._mutex:
            descriptor = self._open() if self._descriptor is None else self._descriptor
            end = os.lseek(descriptor, 0, os.SEEK_END)
            try:
                written = os.write(descriptor, line)
                if written < len(line):
                    # the disk took a part; asking again for the rest brings the reason
                    written += os.write(descriptor, line[written:])
                    if written < len(line):
                        raise OSError(errno.ENOSPC, "the disk took only a part of the record")
                self._dirty = True
                now = time.monotonic()
                if now - self._synced >= self.sync_seconds:
                    flush(descriptor)
                    self._synced, self._dirty = now, False
            except OSError as error:
                with suppress(OSError):
                    os.ftruncate(descriptor, end)
                raise writing_error(error, self.path, needed=len(line)) from error

    def load(self) -> Iterator[Record]:
        """All records in the order of writing; a partial last line is ignored."""
        self.damaged = 0
        for _, line in self._lines():
            record = decode_record(line)
            if record is None:
                self.damaged += 1
            else:
                yield record

    def latest(self) -> Latest:
        """The record that counts of every image; holds positions, not records, in memory."""
        self.damaged = 0
        places: dict[str, tuple[int, int]] = {}
        for offset, line in self._lines():
            record = decode_record(line)
            if record is None or not isinstance(record.get(self.key), str):
                self.damaged += 1
            else:
                places[record[self.key]] = (offset, len(line))
        return Latest(self.path, places)

    def finalize(self, order: Iterable[str] = ()) -> None:
        """Rewrite the file with one record per image; nothing then tells how often the run was interrupted.

        Args:
            order: keys in the order wanted; records of other images follow, sorted.
        """
        self.close()
        latest = self.latest()
        wanted = dict.fromkeys(order)
        keys = [key for key in wanted if key in latest]
        keys += sorted(key for key in latest if key not in wanted)
        if not keys and not os.path.exists(self.path):
            return
        with latest, atomic_file(self.path) as file:
            for key in keys:
                file.write(latest.line(key))

    def close(self) -> None:
        """Flush and close; the next append opens again."""
        with self._mutex:
            if self._descriptor is None:
                return
            descriptor, self._descriptor = self._descriptor, None
            try:
                if self._dirty:
                    flush(descriptor)
                    self._dirty = False
                os.close(descriptor)
            except OSError as error:
                raise writing_error(error, self.path) from error

    def _open(self) -> int:
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = descriptor = os.open(self.path, flags, 0o666)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                _drop_partial_line(descriptor)
        except OSError as error:
            raise writing_error(error, self.path) from error
        return descriptor

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            if not os.path.isfile(self.path):
                return
            with open(self.path, "rb") as file:
                offset = 0
                for line in file:
                    if line.endswith(b"\n"):
                        yield offset, line
                    offset += len(line)
        except OSError as error:
            name = printable(self.path)
            raise WsssError(f"cannot read {name}: {error.strerror}", code="cannot_read") from error


class Latest(Mapping[str, Record]):
    """Read-only view of the records that count; reads a record from the file when asked for it.

    Stays valid while the file is only appended to.
    """

    def __init__(self, path: str, places: dict[str, tuple[int, int]]) -> None:
        self._path, self._places = path, places
        self._descriptor: int | None = None

    def __getitem__(self, key: str) -> Record:
        record = decode_record(self.line(key))
        if record is None:
            raise WsssError(f"{printable(self._path)} changed while it was read", code="cannot_read")
        return record

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __enter__(self) -> Latest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def line(self, key: str) -> bytes:
        """The record as it stands in the file."""
        offset, length = self._places[key]
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._descriptor, length, offset)

    def close(self) -> None:
        """Close the file; the next access opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def encode_record(record: Mapping[str, Any]) -> bytes:
    """One line of strict JSON: no NaN, no lone surrogate, exact names kept as ``<key>_b64``."""
    plain: Record = {}
    for key, value in record.items():
        plain[key] = _plain(value)
        if isinstance(value, str) and plain[key] != value:
            plain[f"{key}_b64"] = base64.b64encode(value.encode("utf-8", "surrogateescape")).decode()
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode_record(line: bytes) -> Record | None:
    """Inverse of :func:`encode_record`; None for a line that is no record."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            return None
        for key in [name for name in record if name.endswith("_b64")]:
            exact = base64.b64decode(record.pop(key), validate=True)
            record[key.removesuffix("_b64")] = exact.decode("utf-8", "surrogateescape")
    except (ValueError, TypeError, RecursionError):
        return None
    return record


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a configuration, whatever the order of its keys."""
    text = json.dumps(_plain(dict(config)), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """JSON's own types: lone surrogates escaped, NaN and infinity None, paths and numpy values converted."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, os.PathLike):
        return _plain(os.fsdecode(value))
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    raise TypeError(f"a {type(value).__name__} cannot be stored as JSON")


def _drop_partial_line(descriptor: int) -> None:
    """Cut what a kill or a power cut left of a last line."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    keep = end
    while keep:
        start = max(0, keep - (1 << 16))
        block = os.pread(descriptor, keep - start, start)
        newline = block.rfind(b"\n")
        if newline >= 0:
            keep = start + newline + 1
            break
        keep = start
    if keep < end:
        os.ftruncate(descriptor, keep)
