"""Files that are complete or absent, whatever happens to the disk or the process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from wsss_rt.errors import WsssError
from wsss_rt.io import atomic
from wsss_rt.io.atomic import atomic_file, probe_writable, remove_leftovers, write_atomic


def code_of(path: Path, data: bytes = b"new") -> str:
    with pytest.raises(WsssError) as caught:
        write_atomic(path, data)
    assert caught.value.exit_code == 1
    return caught.value.code


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_writes_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "mask.png"
    write_atomic(path, b"first")
    write_atomic(path, memoryview(b"second"), durable=True)
    assert path.read_bytes() == b"second"
    write_atomic(path, b"")
    assert path.read_bytes() == b""
    assert os.listdir(path.parent) == ["mask.png"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_longest_names_and_odd_bytes_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, os.fsdecode(b"caf\xe9.png"), "new\nline", "-dash"):
        write_atomic(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
    assert code_of(tmp_path / ("n" * 256)) == "cannot_write"
    assert len(os.listdir(tmp_path)) == 4


def test_a_relative_name_without_a_folder(work: Path) -> None:
    write_atomic("plain.txt", b"x")
    assert os.listdir(work) == ["plain.txt"]


def test_an_exception_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_errors_of_the_caller_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_file(tmp_path / "a"):
        open(tmp_path / "elsewhere").close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("failing", "number", "code"),
    [
        ("fsync", errno.EIO, "cannot_write"),
        ("fsync", errno.ENOSPC, "disk_full"),
        ("fsync", errno.EDQUOT, "disk_full"),
        ("replace", errno.EXDEV, "cannot_write"),
        ("write", errno.ENOSPC, "disk_full"),
        ("open", errno.EROFS, "read_only"),
        ("open", errno.EACCES, "read_only"),
    ],
)
def test_failures_of_the_disk_leave_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, number: int, code: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, failing, fail)
        found = code_of(path)
    assert found == code
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_file_systems_without_fsync_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EINVAL, "no fsync here")

    monkeypatch.setattr(atomic.os, "fsync", fail)
    write_atomic(tmp_path / "a", b"x", durable=True)
    assert (tmp_path / "a").read_bytes() == b"x"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(atomic.os, "write", lambda descriptor, view: write(descriptor, view[:7]))
    write_atomic(tmp_path / "a", bytes(range(256)))
    assert (tmp_path / "a").read_bytes() == bytes(range(256))


def test_a_link_to_a_full_disk_says_so_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.symlink_to("/dev/full")
    with pytest.raises(WsssError, match="3 bytes were needed") as caught:
        write_atomic(path, b"new")
    assert caught.value.code == "disk_full"
    assert path.is_symlink() and os.listdir(tmp_path) == ["mask.png"]


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("elsewhere/real")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "real").read_bytes() == b"new"
    assert os.listdir(tmp_path / "elsewhere") == ["real"]


def test_targets_that_cannot_be_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    assert code_of(tmp_path / "folder") == "not_a_file"
    assert code_of(tmp_path / "file" / "below") == "not_a_folder"
    assert code_of(tmp_path / "pipe") == "cannot_write"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "pipe"]


LIMITED = """
import os, resource, sys
from wsss_rt.errors import WsssError
from wsss_rt.io.atomic import write_atomic, probe_writable
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
out = sys.argv[1]
write_atomic(out + "/small", bytes(2000))
for action in (lambda: write_atomic(out + "/large", bytes(2001)), lambda: probe_writable(out)):
    try:
        action()
    except WsssError as error:
        print(error.code, error.exit_code, error, sep="|")
"""


def test_a_size_limit_counts_as_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"old")
    done = run(LIMITED, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("disk_full|1|") and "2,001 bytes were needed" in first
    assert second.startswith("disk_full|1|")
    assert sorted(os.listdir(tmp_path)) == ["large", "small"]
    assert (tmp_path / "large").read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        assert code_of(tmp_path / "a") == "read_only"
        with pytest.raises(WsssError, match="Permission") as caught:
            probe_writable(tmp_path)
        assert caught.value.code == "read_only"
    finally:
        tmp_path.chmod(0o755)


def test_a_file_system_that_takes_no_files_is_named() -> None:
    with pytest.raises(WsssError) as caught:
        probe_writable("/proc/self")
    assert caught.value.exit_code == 1 and "/proc/self" in str(caught.value)


def test_probe_makes_the_folder_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    probe_writable(tmp_path / "new" / "out")
    assert os.listdir(tmp_path / "new" / "out") == []
    (tmp_path / "file").touch()
    with pytest.raises(WsssError) as caught:
        probe_writable(tmp_path / "file")
    assert caught.value.code == "not_a_folder"


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    ours = [".wsss-rt-0123456789abcdef.tmp", "sub/.wsss-rt-fedcba9876543210.tmp"]
    others = [
        ".wsss-rt-short.tmp",
        ".other.tmp",
        "mask.png",
        ".wsss-rt.lock",
        "x.wsss-rt-0123456789abcdef.tmp",
    ]
    (tmp_path / "sub").mkdir()
    for name in [*ours, *others]:
        (tmp_path / name).touch()
    (tmp_path / ".wsss-rt-aaaaaaaaaaaaaaaa.tmp").symlink_to("mask.png")
    assert remove_leftovers(tmp_path) == 2
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir())
    assert left == sorted([*others, ".wsss-rt-aaaaaaaaaaaaaaaa.tmp"])
    assert remove_leftovers(tmp_path / "missing") == 0


WRITER = """
import itertools, sys
from wsss_rt.io.atomic import write_atomic
print("ready", flush=True)
for number in itertools.count():
    for name in range(4):
        write_atomic(f"{sys.argv[1]}/{name}.bin", bytes([number % 251]) * 300_000)
"""


def test_a_killed_writer_never_leaves_half_a_file(tmp_path: Path) -> None:
    leftovers = 0
    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.03 + 0.017 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for path in tmp_path.glob("*.bin"):
            content = path.read_bytes()
            assert len(content) == 300_000 and len(set(content)) == 1, path
        leftovers += remove_leftovers(tmp_path)
        assert all(name.endswith(".bin") for name in os.listdir(tmp_path))
    assert list(tmp_path.glob("*.bin")), "the writer was always killed before its first file"
