"""One run per output folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from contextlib import suppress
from typing import Any

from wsss_rt.errors import WsssError
from wsss_rt.io.atomic import StrPath, writing_error
from wsss_rt.io.names import printable

LOCK_NAME = ".wsss-rt.lock"
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class RunLock:
    """Holds ``folder/.wsss-rt.lock`` while a run writes into the folder.

    The kernel frees the lock when its process dies, however it dies; the file that stays then is taken over
    by the next run. A run that ends by itself removes the file. Where the file system has no ``flock``, the
    file's existence is the lock, and one whose process on this machine is gone is taken over.

    Args:
        folder: the output folder; made where it is missing.

    Attributes:
        took_over: who left the lock behind, such as ``process 4711 on gpu-3``; empty after a clean end.
    """

    def __init__(self, folder: StrPath) -> None:
        self.path = os.path.join(os.fspath(folder), LOCK_NAME)
        self.took_over = ""
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, or fail at once.

        Raises:
            WsssError: code ``locked``, naming the process that holds it; or that of a failed write.
        """
        if self._descriptor is not None:
            raise RuntimeError("this lock is already held")
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            while self._descriptor is None:
                self._try()
        except OSError as error:
            raise writing_error(error, self.path) from error

    def release(self) -> None:
        """Remove the file and free the lock; harmless when it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        # removed while still held: whoever opened the file meanwhile sees, once it has the lock, that it is
        # gone
        with suppress(OSError):
            if _is_same(descriptor, self.path):
                os.unlink(self.path)
        os.close(descriptor)

    def _try(self) -> None:
        """Take the lock if it is free; returns without it where the file changed under our hands."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor, created = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                descriptor, created = os.open(self.path, flags), False
            except FileNotFoundError:
                return
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise self._busy(_read_holder(descriptor)) from error
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
                if not created:
                    self._remove_abandoned(_read_holder(descriptor))
            if not _is_same(descriptor, self.path):
                os.close(descriptor)
                return
            if not created and (holder := _read_holder(descriptor)):
                self.took_over = _describe(holder)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _identity(), 0)
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _busy(self, holder: dict[str, Any]) -> WsssError:
        folder = printable(os.path.dirname(self.path))
        return WsssError(
            f"another run writes into {folder}: {_describe(holder)}",
            fix="wait for it, stop it, or choose another --out",
            code="locked",
        )

    def _remove_abandoned(self, holder: dict[str, Any]) -> None:
        """The way on without flock; its last resort is the person who reads the message."""
        if holder.get("host") == socket.gethostname() and not _is_alive(holder.get("pid")):
            self.took_over = _describe(holder)
            os.unlink(self.path)
            return
        raise WsssError(
            self._busy(holder).what,
            fix=f"if that process is gone, delete {printable(self.path)} and run again",
            code="locked",
        )


def _identity() -> bytes:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode() + b"\n"


def _read_holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        # empty or half written: its owner has just created it
        return {}
    return holder if isinstance(holder, dict) else {}


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process that has just begun"
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"


def _is_same(descriptor: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _is_alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
