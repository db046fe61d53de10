"""Reading files of unknown kind: never blocks on a pipe, never opens a device, says why it cannot."""

from __future__ import annotations

import errno
import os
import stat

from wsss_rt.errors import ImageError, ImageErrorCode, WsssError
from wsss_rt.io.names import printable

MAX_BYTES = 1 << 30


def read_bytes(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> bytes:
    """Content of a regular file; never blocks on a pipe and never opens a device.

    Raises:
        ImageError: vanished, no_permission, not_a_file, too_large, or corrupt (the disk cannot read it).
        WsssError: the process is out of file descriptors; no other file would fare better.
    """
    try:
        # opening a pipe, even without blocking, would wake its writer: look first
        _require_file(os.stat(path), path, max_bytes)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            _require_file(status, path, max_bytes)
            chunks: list[bytes] = []
            left = max_bytes + 1
            want = status.st_size + 1
            while left > 0 and (chunk := os.read(descriptor, min(left, max(want, 1 << 16)))):
                chunks.append(chunk)
                left -= len(chunk)
                want -= len(chunk)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _reading_error(error, path) from error
    if left <= 0:
        raise _too_many_bytes(path, max_bytes)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _require_file(status: os.stat_result, path: str | os.PathLike[str], max_bytes: int) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        names = {
            stat.S_IFDIR: "a folder",
            stat.S_IFIFO: "a named pipe",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
        }
        raise ImageError(
            ImageErrorCode.NOT_A_FILE, f"{printable(path)} is {names.get(kind, 'no file')}, not a file"
        )
    if status.st_size > max_bytes:
        raise _too_many_bytes(path, max_bytes)


def _too_many_bytes(path: str | os.PathLike[str], max_bytes: int) -> ImageError:
    return ImageError(
        ImageErrorCode.TOO_LARGE, f"{printable(path)} is larger than {max_bytes / 1e6:.0f} million bytes"
    )


def _reading_error(error: OSError, path: str | os.PathLike[str]) -> WsssError:
    name, reason = printable(path), error.strerror or str(error)
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ESTALE):
        why = "it is a link to nowhere" if os.path.islink(path) else "it does not exist, or no longer"
        return ImageError(ImageErrorCode.VANISHED, f"{name} cannot be found", why=why)
    if error.errno in (errno.EACCES, errno.EPERM):
        return ImageError(ImageErrorCode.NO_PERMISSION, f"{name} cannot be read", why=reason)
    if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV):
        return ImageError(ImageErrorCode.NOT_A_FILE, f"{name} is not a file", why=reason)
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return WsssError(f"{name} cannot be opened", why=reason, fix="raise the limit with: ulimit -n 4096")
    return ImageError(ImageErrorCode.CORRUPT, f"{name} cannot be read", why=reason)
