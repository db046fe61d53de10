"""Reading files of unknown kind."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from wsss_rt.errors import ImageError
from wsss_rt.io.decode import read_bytes


def code_of(path: str | Path, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        read_bytes(path, **options)
    return caught.value.code


def test_reads_a_whole_file_and_respects_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    content = os.urandom(200_000)
    path.write_bytes(content)
    assert read_bytes(path) == content
    assert read_bytes(path, max_bytes=200_000) == content
    assert code_of(path, max_bytes=199_999) == "too_large"


def test_empty_file_gives_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert read_bytes(tmp_path / "a.jpg") == b""


def test_a_growing_file_is_bounded() -> None:
    # /proc files say that they are empty, and are not: like a file that grew after it was measured
    assert len(read_bytes("/proc/self/status")) > 100
    assert code_of("/proc/self/status", max_bytes=100) == "too_large"


def test_special_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "s.jpg"))
        for name in ("pipe.jpg", "folder.jpg", "s.jpg"):
            assert code_of(tmp_path / name) == "not_a_file", name
    assert code_of("/dev/zero") == "not_a_file"
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    assert code_of(tmp_path / "device.jpg") == "not_a_file"


def test_a_pipe_is_not_even_opened(tmp_path: Path) -> None:
    """A program that waits to write into the pipe must go on waiting."""
    path = tmp_path / "pipe.jpg"
    os.mkfifo(path)
    opened = threading.Event()

    def writer() -> None:
        descriptor = os.open(path, os.O_WRONLY)
        opened.set()
        os.close(descriptor)

    thread = threading.Thread(target=writer, daemon=True)
    thread.start()
    assert code_of(path) == "not_a_file"
    assert not opened.wait(0.2)
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    thread.join(5)


def test_missing_files_and_links_in_circles(tmp_path: Path) -> None:
    assert code_of(tmp_path / "gone.jpg") == "vanished"
    (tmp_path / "dead.jpg").symlink_to("gone.jpg")
    with pytest.raises(ImageError, match="link to nowhere"):
        read_bytes(tmp_path / "dead.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    assert code_of(tmp_path / "self.jpg") == "not_a_file"
    (tmp_path / "file").touch()
    assert code_of(tmp_path / "file" / "a.jpg") == "vanished"
    assert code_of(tmp_path / ("n" * 300)) == "vanished"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.touch(mode=0)
    assert code_of(path) == "no_permission"


def test_names_that_are_no_utf8_are_read_and_printed(tmp_path: Path) -> None:
    path = os.path.join(tmp_path, os.fsdecode(b"caf\xe9\n.jpg"))
    with pytest.raises(ImageError) as caught:
        read_bytes(path)
    assert "caf\\xe9\\n.jpg" in str(caught.value)
    str(caught.value).encode("utf-8")
    Path(path).write_bytes(b"x")
    assert read_bytes(path) == b"x"
