"""The lock keeps two runs out of one folder, and never outlives its run."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import start_python
from wsss_rt.errors import WsssError
from wsss_rt.io import lock as module
from wsss_rt.io.lock import LOCK_NAME, RunLock

HOLDER = """
import sys
from wsss_rt.io.lock import RunLock
lock = RunLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    return start_python(HOLDER, str(folder), says="held")


def test_a_second_process_is_refused_by_name_and_may_come_later(tmp_path: Path) -> None:
    process = hold(tmp_path)
    with pytest.raises(WsssError) as caught:
        RunLock(tmp_path).acquire()
    assert caught.value.code == "locked" and caught.value.exit_code == 1
    assert str(process.pid) in str(caught.value) and socket.gethostname() in str(caught.value)
    process.communicate()
    assert process.returncode == 0 and os.listdir(tmp_path) == []
    with RunLock(tmp_path) as lock:
        assert lock.took_over == ""


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    process = hold(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert os.listdir(tmp_path) == [LOCK_NAME]
    with RunLock(tmp_path) as lock:
        assert str(process.pid) in lock.took_over
        held = json.loads((tmp_path / LOCK_NAME).read_text())
        assert held == {"pid": os.getpid(), "host": socket.gethostname()}
    assert os.listdir(tmp_path) == []


def test_two_runs_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    with RunLock(tmp_path / "out") as first:
        with pytest.raises(WsssError, match=str(os.getpid())):
            RunLock(tmp_path / "out").acquire()
        with pytest.raises(RuntimeError):
            first.acquire()
        assert (tmp_path / "out" / LOCK_NAME).exists()
    first.release()
    with first:
        pass
    assert os.listdir(tmp_path / "out") == []


def test_the_lock_is_released_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunLock(tmp_path):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_lock_on_a_removed_file_is_worth_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our open and our flock the holder removes the file, and a third run makes a new one."""
    path = tmp_path / LOCK_NAME
    path.touch()
    flock = module.fcntl.flock
    third: list[RunLock] = []

    def late(descriptor: int, flags: int) -> None:
        if not third:
            third.append(RunLock(tmp_path))
            path.unlink()
            third[0].acquire()
        flock(descriptor, flags)

    monkeypatch.setattr(module.fcntl, "flock", late)
    with pytest.raises(WsssError) as caught:
        RunLock(tmp_path).acquire()
    assert caught.value.code == "locked"
    third[0].release()
    assert os.listdir(tmp_path) == []


RACER = """
import os, sys, time
from wsss_rt.errors import WsssError
from wsss_rt.io.lock import RunLock
wins = 0
deadline = time.monotonic() + 60
while wins < 20 and time.monotonic() < deadline:
    try:
        with RunLock(sys.argv[1]):
            marker = sys.argv[1] + "/inside"
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            time.sleep(0.001)
            os.unlink(marker)
        wins += 1
    except WsssError as error:
        assert error.code == "locked", error
    time.sleep(0.001)
assert wins == 20, wins
"""


def test_racing_processes_are_never_inside_together(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    errors = [racer.communicate()[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], errors
    assert os.listdir(tmp_path) == []


@pytest.fixture()
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(module.fcntl, "flock", fail)


def test_without_flock_the_file_itself_is_the_lock(tmp_path: Path, no_flock: None) -> None:
    with RunLock(tmp_path):
        with pytest.raises(WsssError, match="delete") as caught:
            RunLock(tmp_path).acquire()
        assert caught.value.code == "locked"
    assert os.listdir(tmp_path) == []


def test_without_flock_a_dead_process_here_is_taken_over_and_another_host_is_not(
    tmp_path: Path, no_flock: None
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path = tmp_path / LOCK_NAME
    path.write_text(json.dumps({"pid": gone.pid, "host": socket.gethostname()}))
    with RunLock(tmp_path) as lock:
        assert str(gone.pid) in lock.took_over
    path.write_text(json.dumps({"pid": gone.pid, "host": "another-machine"}))
    with pytest.raises(WsssError, match="another-machine"):
        RunLock(tmp_path).acquire()
    assert path.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WsssError) as caught:
        RunLock(tmp_path / "file").acquire()
    assert caught.value.code == "not_a_folder"


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / LOCK_NAME).symlink_to("victim")
    with pytest.raises(WsssError):
        RunLock(tmp_path).acquire()
    assert (tmp_path / "victim").read_text() == "precious"
