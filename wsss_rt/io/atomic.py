"""Files that are either complete under their final name or absent."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wsss_rt.errors import WsssError
from wsss_rt.io.names import printable

StrPath = str | os.PathLike[str]

# short and of fixed length, so that a final name of 255 bytes does not make the temporary one too long
_TEMPORARY = re.compile(r"\.wsss-rt-[0-9a-f]{16}\.tmp")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
# file systems that have no fsync say so; nothing better can be done there
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def write_atomic(path: StrPath, data: bytes | bytearray | memoryview, *, durable: bool = False) -> None:
    """Write a whole file, or leave what was there untouched.

    The bytes go to a temporary file beside the target, are flushed to the disk, and are renamed onto it.
    Missing parent folders are made. A target that is a link is followed, and stays a link.

    Args:
        path: final name.
        data: the whole content.
        durable: also flush the folder, so that the new name survives a power cut.

    Raises:
        WsssError: code ``disk_full``, ``read_only``, ``not_a_file``, ``not_a_folder`` or ``cannot_write``.
    """
    with atomic_file(path, durable=durable, size=len(data)) as file:
        file.write(data)


class AtomicFile:
    """The open end of :func:`atomic_file`.

    Attributes:
        written: bytes so far.
    """

    def __init__(self, descriptor: int, path: StrPath, size: int | None = None) -> None:
        self._descriptor, self._path, self._size = descriptor, path, size
        self.written = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append all of ``data``."""
        view = memoryview(data).cast("B")
        with _explained(self._path, self._size or self.written + len(view)):
            while view:
                count = os.write(self._descriptor, view)
                self.written += count
                view = view[count:]


@contextmanager
def atomic_file(path: StrPath, *, durable: bool = False, size: int | None = None) -> Iterator[AtomicFile]:
    """As :func:`write_atomic`, for content that is written piece by piece.

    The target appears when the block ends without an exception.

    Args:
        path: final name.
        durable: also flush the folder.
        size: bytes that will be written, where known; for the message when the disk is full.
    """
    with _explained(path, size):
        target = _real_target(path)
    if target is None:
        with _explained(path, size):
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield AtomicFile(descriptor, path, size)
        finally:
            os.close(descriptor)
        return
    folder = os.path.dirname(target) or "."
    temporary = os.path.join(folder, f".wsss-rt-{secrets.token_hex(8)}.tmp")
    try:
        with _explained(path, size):
            descriptor = _create(temporary, folder)
        try:
            yield AtomicFile(descriptor, path, size)
            with _explained(path, size):
                flush(descriptor)
        finally:
            with _explained(path, size):
                # NFS reports a full disk as late as here
                os.close(descriptor)
        with _explained(path, size):
            os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        with _explained(path, size):
            _flush_folder(folder)


def probe_writable(folder: StrPath) -> None:
    """Make the folder where it is missing, and write, flush and remove a file in it.

    To be called before anything long begins, so that a full or read-only disk is found in a second.

    Raises:
        WsssError: as :func:`write_atomic`.
    """
    temporary = os.path.join(os.fspath(folder), f".wsss-rt-{secrets.token_hex(8)}.tmp")
    try:
        os.makedirs(folder, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            AtomicFile(descriptor, folder).write(bytes(4096))
            flush(descriptor)
        finally:
            os.close(descriptor)
            # a run that holds the lock of this folder may have swept it away already
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as error:
        raise writing_error(error, folder, needed=4096) from error


def remove_leftovers(folder: StrPath) -> int:
    """Delete temporary files that a killed run left below ``folder``; only under the lock of that folder.

    Returns:
        How many there were.
    """
    removed = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if _TEMPORARY.fullmatch(name) and stat.S_ISREG(os.lstat(path).st_mode):
                os.unlink(path)
                removed += 1
    return removed


def flush(descriptor: int) -> None:
    """fsync, where the file system has it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def writing_error(error: OSError, path: StrPath, *, needed: int | None = None) -> WsssError:
    """What a failed write means, in the user's words.

    Args:
        error: what the system said.
        path: what was to be written.
        needed: bytes that were to be written, where known.
    """
    name = printable(path)
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return WsssError(
            f"cannot write {name}: {reason}",
            why=_space(path, needed),
            fix="make room, or choose another --out; then run the same command again",
            code="disk_full",
        )
    if error.errno in _READ_ONLY:
        return WsssError(
            f"cannot write {name}: {reason}", fix="choose a folder that you may write to", code="read_only"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return WsssError(
            f"cannot write {name}: {reason}", why="a file lies where a folder is needed", code="not_a_folder"
        )
    if error.errno == errno.EISDIR:
        return WsssError(f"cannot write {name}", why="it is a folder", code="not_a_file")
    return WsssError(f"cannot write {name}: {reason}", code="cannot_write")


def _real_target(path: StrPath) -> str | None:
    """Where the temporary file is to be renamed to; None for a device, which can only be written into."""
    target = os.fspath(path)
    try:
        status = os.lstat(target)
        if stat.S_ISLNK(status.st_mode):
            target = os.path.realpath(target)
            status = os.stat(target)
    except FileNotFoundError:
        return target
    if stat.S_ISCHR(status.st_mode):
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a disk, not a file", os.fspath(path))
    return target


def _create(temporary: str, folder: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(temporary, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)
        return os.open(temporary, flags, 0o666)


def _flush_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: StrPath, needed: int | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise writing_error(error, path, needed=needed) from error


def _space(path: StrPath, needed: int | None) -> str:
    folder = Path(os.path.realpath(path))
    while not folder.is_dir():
        folder = folder.parent
    try:
        status = os.statvfs(folder)
    except OSError:
        return f"{needed:,} bytes were needed" if needed else ""
    free = f"{status.f_bavail * status.f_frsize:,} bytes are free there"
    return f"{needed:,} bytes were needed, {free}" if needed else free
