"""Compiled engines in the cache: what is not ours, not whole or not for this machine is never loaded."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.nasty import DAMAGED_JSON
from tests.processes import start_python
from wsss_rt.engines import compiled_cache
from wsss_rt.engines.compiled_cache import CompiledFile, Identity, compiled_folder, obtain
from wsss_rt.errors import WsssError

IDENTITY = Identity(
    artifact="ab" * 32,
    kind="tensorrt",
    library={"tensorrt": "10.13.2"},
    device={"name": "NVIDIA H200", "compute_capability": "9.0"},
    precision="float16",
    shapes={"images": {"min": (1, 3, 64, 64), "max": (8, 3, 512, 512)}},
    options={"level": 3},
)


class Builder:
    """Writes an engine file, counts how often it had to, and keeps what was told."""

    def __init__(self, content: bytes = b"machine code") -> None:
        self.content, self.builds, self.lines = content, 0, list[str]()

    def __call__(self, path: Path) -> None:
        self.builds += 1
        path.write_bytes(self.content)

    def obtain(self, identity: Identity = IDENTITY, **options: Any) -> CompiledFile:
        self.lines.clear()
        found = obtain(identity, self, tell=self.lines.append, **options)
        assert all("\n" not in line for line in self.lines)
        return found


@pytest.fixture
def builder() -> Builder:
    return Builder()


def engine_file() -> Path:
    (path,) = compiled_folder().glob("*.plan")
    return path


def sidecar_file() -> Path:
    (path,) = compiled_folder().glob("*.json")
    return path


def test_an_engine_is_built_once_and_comes_from_the_cache_in_silence(builder: Builder) -> None:
    first = builder.obtain()
    assert first.built and first.data == b"machine code" and len(builder.lines) == 1
    assert "NVIDIA H200" in builder.lines[0] and "float16" in builder.lines[0]
    again = builder.obtain()
    assert not again.built and again.data == first.data and again.path == engine_file()
    assert builder.builds == 1 and builder.lines == []
    assert stat.S_IMODE(compiled_folder().stat().st_mode) == 0o700
    assert stat.S_IMODE(engine_file().stat().st_mode) == 0o600
    told = json.loads(sidecar_file().read_text())
    assert told["identity"]["device"]["name"] == "NVIDIA H200" and told["size"] == 12


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3],
        lambda data: b"",
        lambda data: data.replace(b"code", b"virus"),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data + b"\0",
    ],
    ids=["cut", "empty", "longer", "one bit", "appended"],
)
def test_an_engine_file_that_was_changed_is_not_loaded_and_built_once(builder: Builder, damage: Any) -> None:
    builder.obtain()
    engine_file().write_bytes(damage(engine_file().read_bytes()))
    found = builder.obtain()
    assert found.data == b"machine code" and found.built
    (line,) = builder.lines
    assert "was changed or cut short" in line and "it was not loaded" in line
    assert not builder.obtain().built and builder.builds == 2


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGED_JSON,
        lambda text: text.replace('"parity": {}', '"parity": 3'),
        lambda text: text.replace('"identity"', '"other"'),
        lambda text: text.replace('"format": 1', '"format": 99'),
    ],
    ids=["cut", "empty", "list", "binary", "parity", "no identity", "newer"],
)
def test_a_damaged_sidecar_means_one_new_build_and_one_line(builder: Builder, damage: Any) -> None:
    builder.obtain()
    before = sidecar_file().read_text()
    sidecar_file().write_text(damage(before), encoding="latin-1")
    assert builder.obtain().built and len(builder.lines) == 1
    assert sidecar_file().read_text() == before
    assert not builder.obtain().built


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("library", "tensorrt", "9.0.1", "library tensorrt 9.0.1, not 10.13.2"),
        ("device", "name", "NVIDIA A10", "device name NVIDIA A10, not NVIDIA H200"),
        ("device", "compute_capability", "8.6", "compute_capability 8.6, not 9.0"),
        ("options", "level", 5, "options level 5, not 3"),
        ("shapes", "images", {}, "shapes images max nothing, not [8, 3, 512, 512]"),
        (None, "precision", "float32", "precision float32, not float16"),
        (None, "artifact", "00" * 32, "artifact 0000"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_sidecar_of_something_else_means_one_new_build_and_a_line_that_says_what_differs(
    builder: Builder, section: str | None, key: str, value: Any, said: str
) -> None:
    builder.obtain()
    sidecar = json.loads(sidecar_file().read_text())
    place = sidecar["identity"] if section is None else sidecar["identity"][section]
    place[key] = value
    sidecar_file().write_text(json.dumps(sidecar))
    assert builder.obtain().built
    (line,) = builder.lines
    assert said in line
    assert not builder.obtain().built and builder.builds == 2


def test_an_upgraded_library_replaces_the_file_and_another_gpu_gets_its_own(builder: Builder) -> None:
    builder.obtain()
    upgraded = replace(IDENTITY, library={"tensorrt": "11.0.0"})
    assert builder.obtain(upgraded).built
    assert "library tensorrt 10.13.2, not 11.0.0" in builder.lines[0]
    assert len(list(compiled_folder().glob("*.plan"))) == 1
    # the home folder of a cluster serves machines of several kinds, which must not build in turns
    other = replace(upgraded, device={"name": "NVIDIA A10", "compute_capability": "8.6"})
    assert builder.obtain(other).built
    assert "device name NVIDIA H200, not NVIDIA A10" in builder.lines[0]
    assert not builder.obtain(other).built and not builder.obtain(upgraded).built


def test_a_refused_engine_is_not_kept_and_its_refusal_is(builder: Builder) -> None:
    def fails(data: bytes) -> Mapping[str, Any]:
        assert data == b"machine code"
        return {"passed": False, "summary": "masks differ by 3.1e-02, limit 1e-03"}

    for _ in range(2):
        with pytest.raises(WsssError) as caught:
            builder.obtain(check=fails)
        assert caught.value.code == "parity_failed" and "3.1e-02" in str(caught.value)
        assert str(sidecar_file()) in str(caught.value) and "--precision" in str(caught.value)
    assert builder.builds == 1 and not list(compiled_folder().glob("*.plan"))
    sidecar_file().unlink()
    found = builder.obtain(check=lambda data: {"passed": True, "images": 8})
    assert found.parity == builder.obtain().parity == {"passed": True, "images": 8}


def test_an_error_of_the_build_or_the_check_is_the_callers_and_leaves_nothing(builder: Builder) -> None:
    def broken(path: Path) -> None:
        path.write_bytes(b"half")
        raise WsssError("the compiler is missing")

    def lost(data: bytes) -> Mapping[str, Any]:
        raise WsssError("the device is gone", code="device_lost")

    with pytest.raises(WsssError, match="the compiler is missing"):
        obtain(IDENTITY, broken, tell=builder.lines.append)
    with pytest.raises(WsssError, match="the device is gone"):
        builder.obtain(check=lost)
    assert [path.suffix for path in compiled_folder().iterdir()] == [".lock"]
    assert builder.obtain().built


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777], ids=oct)
def test_nothing_is_loaded_from_a_folder_that_others_can_write_to(builder: Builder, mode: int) -> None:
    builder.obtain()
    compiled_folder().chmod(mode)
    found = builder.obtain()
    assert found.built and found.path is None and found.data == b"machine code"
    assert "not this user's alone" in builder.lines[0] and f"{mode:04o}" in builder.lines[0]
    assert "temporary folder" in builder.lines[1]
    compiled_folder().chmod(0o755)
    assert not builder.obtain().built


def test_a_file_that_others_can_write_to_is_replaced(builder: Builder) -> None:
    builder.obtain()
    engine_file().chmod(0o666)
    assert builder.obtain().built and "everybody can write to it" in builder.lines[0]
    assert not builder.obtain().built


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_nothing_is_loaded_that_belongs_to_another_user(builder: Builder) -> None:
    builder.obtain()
    os.chown(engine_file(), 12345, -1)
    assert builder.obtain().built and "number 12345" in builder.lines[0]
    os.chown(compiled_folder(), 12345, -1)
    found = builder.obtain()
    assert found.built and found.path is None and "number 12345" in builder.lines[0]


@pytest.mark.parametrize("blocked", ["a file", "/proc"])
def test_a_cache_folder_that_cannot_be_written_costs_a_build_a_run_and_says_so(
    builder: Builder, blocked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / blocked))
    for _ in range(2):
        found = builder.obtain()
        assert found.built and found.path is None and found.data == b"machine code"
        assert "neither kept nor taken" in builder.lines[0] and "temporary folder" in builder.lines[1]
    assert builder.builds == 2


def test_a_disk_that_fills_up_keeps_the_engine_for_this_run(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise WsssError("cannot write: No space left on device", code="disk_full")

    monkeypatch.setattr(compiled_cache.PrivateFolder, "write", full)
    found = builder.obtain()
    assert found.data == b"machine code" and found.path is None
    assert "cannot be kept" in builder.lines[1] and "No space left" in builder.lines[1]


SLOW_BUILD = """
import json, sys
from pathlib import Path
from tests.engines.test_compiled_cache import IDENTITY
from wsss_rt.engines.compiled_cache import obtain

def build(path: Path) -> None:
    print("building", flush=True)
    sys.stdin.readline()
    path.write_bytes(b"built by the other process")

obtain(IDENTITY, build, tell=lambda line: None)
"""


def building_process() -> subprocess.Popen[str]:
    return start_python(SLOW_BUILD, says="building")


def test_a_cache_that_another_process_writes_is_waited_for_and_used(builder: Builder) -> None:
    process = building_process()

    def tell(line: str) -> None:
        builder.lines.append(line)
        # only now is the other one let go, so that this one certainly waited
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()

    found = obtain(IDENTITY, builder, tell=tell)
    assert process.wait(60) == 0
    assert found.data == b"built by the other process" and not found.built and builder.builds == 0
    (line,) = builder.lines
    assert f"process {process.pid} is building the same tensorrt engine" in line


def test_a_process_that_dies_while_it_builds_leaves_its_turn(builder: Builder) -> None:
    process = building_process()
    process.kill()
    process.communicate()
    found = builder.obtain()
    assert found.built and found.data == b"machine code"
    assert not any("waiting" in line for line in builder.lines)


def test_the_wait_is_bounded(builder: Builder) -> None:
    process = building_process()
    found = builder.obtain(wait_seconds=0.2)
    assert found.built and found.data == b"machine code" and "waiting for it" in builder.lines[0]
    # the slow one ends later, and replaces a whole file by a whole file
    process.communicate("go\n")
    assert builder.obtain().data == b"built by the other process"


def test_processes_at_once_build_one_engine(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from tests.engines.test_compiled_cache import IDENTITY
from wsss_rt.engines.compiled_cache import obtain

def build(path: Path) -> None:
    with open(sys.argv[1], "a") as file:
        file.write("built\\n")
    path.write_bytes(os.urandom(1 << 20))

sys.stdout.write(obtain(IDENTITY, build, tell=lambda line: None).sidecar["sha256"])
"""
    log = tmp_path / "builds"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(log)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(4)
    ]
    hashes = {process.communicate()[0] for process in processes}
    assert len(hashes) == 1 and len(hashes.pop()) == 64
    assert log.read_text() == "built\n"
