"""A folder of this user's own: what is read from it, nobody else can have written."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wsss_rt.errors import WsssError
from wsss_rt.io.atomic import write_atomic, writing_error
from wsss_rt.io.file_lock import wait_for_lock
from wsss_rt.io.names import printable

_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class UnsafeFolder(WsssError):
    """Somebody else can write into the folder or owns it, or a file in it."""

    default_code = "unsafe_cache"


class PrivateFolder:
    """Files that only this user could have written.

    Owner and mode are asked of the opened folder and of the opened files, never of a path, so that nothing
    can be swapped between the question and the reading.

    Args:
        path: made where it is missing, for this user alone; its parent too.

    Raises:
        UnsafeFolder: the folder is another user's, or others may write into it.
        WsssError: code ``read_only``, ``disk_full``, ``not_a_folder``: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.mkdir(exist_ok=True, mode=0o700)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise writing_error(error, path) from error
        try:
            _check(os.fstat(self._descriptor), str(path))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder; harmless when repeated."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def read(self, name: str) -> bytes | None:
        """Content of a file; None where there is none, or none that can be read.

        Raises:
            UnsafeFolder: the file is another user's, or others may write to it.
        """
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            _check(status, str(self.path / name))
            try:
                return file.read()
            except OSError:
                # a disk that fails to read costs a rebuild, as a missing file does
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, for this user alone.

        Raises:
            WsssError: as :func:`wsss_rt.io.atomic.write_atomic`.
        """
        target = self.path / name
        write_atomic(target, data, durable=True)
        with suppress(OSError):
            os.chmod(target, 0o600)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there and the folder lets us."""
        with suppress(OSError):
            os.unlink(name, dir_fd=self._descriptor)

    def names(self) -> list[str]:
        """What lies in the folder, sorted."""
        return sorted(os.listdir(self._descriptor))

    @contextmanager
    def locked(self, name: str, *, wait_seconds: float, waiting: Callable[[str], None]) -> Iterator[bool]:
        """Hold ``flock`` on a file of this name, which stays behind, empty.

        Args:
            name: of the lock file.
            wait_seconds: how long to wait for another process.
            waiting: called once, with the words for that process, before the wait begins.

        Yields:
            Whether the lock is held: False after the wait, or where the file system has no locks. Writers
            replace whole files, so that going on without it can cost work and no result.

        Raises:
            WsssError: the folder cannot be written.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(name, flags, 0o600, dir_fd=self._descriptor)
        except OSError as error:
            raise writing_error(error, self.path / name) from error
        try:
            held = _wait(descriptor, wait_seconds, waiting)
            if held:
                with suppress(OSError):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield held
            if held:
                with suppress(OSError):
                    os.ftruncate(descriptor, 0)
        finally:
            # closing frees the lock; the kernel does it when the process dies
            os.close(descriptor)


def refuse_unsafe_code(path: Path) -> None:
    """Refuse compiled code that somebody else could have put there: code runs with this user's rights.

    Files of this user's or of root's are taken, in folders of theirs; in one that everybody may write to
    (``/tmp``) only where nobody can replace them.

    Raises:
        UnsafeFolder: the file or its folder is another user's, or everybody may write to it.
    """
    for name in (path, path.resolve().parent):
        status = os.stat(name)
        if status.st_uid not in (os.geteuid(), 0):
            why = f"{printable(name)} belongs to the user with the number {status.st_uid}"
        elif status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            why = f"everybody can write to {printable(name)} (mode {stat.S_IMODE(status.st_mode):04o})"
        else:
            continue
        raise UnsafeFolder(
            f"{printable(path)} holds compiled code, and is not loaded",
            why=f"{why}, and could have put any code there",
            fix="copy it from a source that you trust to a folder of your own",
            code="unsafe_package",
        )


def _wait(descriptor: int, seconds: float, waiting: Callable[[str], None]) -> bool:
    def tell() -> None:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        waiting(f"process {holder}" if holder.isdecimal() else "another process")

    try:
        return wait_for_lock(descriptor, seconds, tell)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return False


def _check(status: os.stat_result, name: str) -> None:
    if status.st_uid != os.geteuid():
        why = f"it belongs to the user with the number {status.st_uid}, and this is number {os.geteuid()}"
    elif status.st_mode & _OTHERS_WRITE:
        who = "everybody" if status.st_mode & stat.S_IWOTH else "its group"
        why = f"{who} can write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    else:
        return
    raise UnsafeFolder(
        f"{printable(name)} is not this user's alone",
        why=why,
        fix="take write permission from others (chmod go-w), or set XDG_CACHE_HOME to a folder of your own",
    )
