"""The manifest: nothing that was written is lost, nothing half-written is believed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.nasty import NOT_UTF8
from wsss_rt.errors import WsssError
from wsss_rt.io import manifest as module
from wsss_rt.io.manifest import Manifest, config_hash


def test_records_come_back_in_order_and_the_last_counts(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m.jsonl") as manifest:
        manifest.append({"path": "a.jpg", "status": "failed"})
        manifest.append({"path": "b.jpg", "status": "labelled", "scores": {"dog": 0.5}})
        manifest.append({"path": "a.jpg", "status": "labelled"})
        assert [record["path"] for record in manifest.load()] == ["a.jpg", "b.jpg", "a.jpg"]
        latest = manifest.latest()
        assert len(latest) == 2 and latest["a.jpg"]["status"] == "labelled"
        assert latest["b.jpg"]["scores"] == {"dog": 0.5}
        assert latest.get("c.jpg") is None and "c.jpg" not in latest


def test_a_missing_manifest_is_empty(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "none" / "m.jsonl")
    assert list(manifest.load()) == [] and len(manifest.latest()) == 0
    manifest.finalize(["a"])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "name", [NOT_UTF8, "new\nline.jpg", "quote\"'.jpg", "\u2028.jpg", "emoji \U0001f415.jpg", "\\xe9"]
)
def test_any_name_survives_and_the_file_stays_strict_json(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.jsonl"
    with Manifest(path) as manifest:
        manifest.append({"path": name, "mask": name + ".png", "error": {"message": f"cannot read {name}"}})
    raw = path.read_bytes()
    assert raw.count(b"\n") == 1
    stored = json.loads(raw.decode("utf-8"))
    stored["path"].encode("utf-8")
    record = next(Manifest(path).load())
    assert record["path"] == name and record["mask"] == name + ".png"
    assert Manifest(path).latest()[name] == record
    assert ("path_b64" in stored) == (name == NOT_UTF8)


def test_numbers_that_json_has_not_become_null(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with Manifest(path) as manifest:
        manifest.append(
            {
                "path": "a",
                "bad": [float("nan"), float("inf")],
                "numpy": [np.float32(0.5), np.int64(3), np.array([1, 2])],
                "where": Path("x/y"),
                "tags": ("b", "a"),
            }
        )

    def refuse(word: str) -> None:
        raise AssertionError(word)

    record = json.loads(path.read_text(), parse_constant=refuse)
    assert record["bad"] == [None, None] and record["numpy"] == [0.5, 3, [1, 2]]
    assert record["where"] == "x/y" and record["tags"] == ["b", "a"]


@pytest.mark.parametrize("tail", [b'{"path":"c.jpg","sta', b"\0" * 5000, b"{", b'{"path":"c.jpg"}'])
def test_a_partial_last_line_is_ignored_and_cut_on_resume(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "m.jsonl"
    with Manifest(path) as manifest:
        manifest.append({"path": "a.jpg"})
        manifest.append({"path": "b.jpg"})
    with open(path, "ab") as file:
        file.write(tail)
    resumed = Manifest(path)
    assert sorted(resumed.latest()) == ["a.jpg", "b.jpg"] and resumed.damaged == 0
    with resumed:
        resumed.append({"path": "c.jpg", "status": "labelled"})
    assert [json.loads(line)["path"] for line in path.read_text().splitlines()] == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_file_that_is_one_partial_line_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"x" * 200_000)
    with Manifest(path) as manifest:
        manifest.append({"path": "a"})
    assert path.read_text() == '{"path":"a"}\n'


@pytest.mark.parametrize(
    "line", [b"not json\n", b"[1]\n", b"\xff\xfe\n", b'{"path":3}\n', b"\n", b'{"path":"a","path_b64":"?"}\n']
)
def test_damage_in_the_middle_costs_one_record(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"path":"a"}\n' + line + b'{"path":"b"}\n')
    manifest = Manifest(path)
    assert sorted(manifest.latest()) == ["a", "b"]
    assert manifest.damaged == 1


def test_each_record_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    write = os.write

    def spy(descriptor: int, data: bytes) -> int:
        writes.append(bytes(data))
        return write(descriptor, data)

    monkeypatch.setattr(module.os, "write", spy)
    with Manifest(tmp_path / "m.jsonl") as manifest:
        for number in range(3):
            manifest.append({"path": f"{number}", "scores": list(range(2000))})
    assert len(writes) == 3 and all(data.endswith(b"}\n") and data.count(b"\n") == 1 for data in writes)


def test_flushing_follows_the_interval_and_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(module, "flush", flushed.append)
    with Manifest(tmp_path / "each.jsonl") as manifest:
        for number in range(5):
            manifest.append({"path": str(number)})
        assert len(flushed) == 5
    flushed.clear()
    with Manifest(tmp_path / "seldom.jsonl", sync_seconds=1e9) as manifest:
        for number in range(5):
            manifest.append({"path": str(number)})
        early = len(flushed)
    assert early <= 1 and len(flushed) == early + 1


def test_appending_from_threads_keeps_lines_whole(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "m.jsonl", sync_seconds=1e9)

    def work(number: int) -> None:
        for index in range(50):
            manifest.append({"path": f"{number}/{index}", "filler": "x" * 5000})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    manifest.close()
    assert len(manifest.latest()) == 200 and manifest.damaged == 0


def test_finalize_hides_the_history(tmp_path: Path) -> None:
    order = ["a", "b", NOT_UTF8, "c"]
    straight, interrupted = Manifest(tmp_path / "1.jsonl"), Manifest(tmp_path / "2.jsonl")
    for name in order:
        straight.append({"path": name, "status": "labelled"})
    interrupted.append({"path": "c", "status": "labelled"})
    interrupted.append({"path": "a", "status": "failed"})
    interrupted.close()
    with open(interrupted.path, "ab") as file:
        file.write(b'{"path": "b", "sta')
    for name in (NOT_UTF8, "b", "a"):
        interrupted.append({"path": name, "status": "labelled"})
    straight.finalize(order)
    interrupted.finalize(order)
    content = Path(interrupted.path).read_bytes()
    assert content == Path(straight.path).read_bytes()
    interrupted.finalize(order)
    assert content == Path(interrupted.path).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["1.jsonl", "2.jsonl"]


def test_finalize_keeps_images_of_other_runs(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "m.jsonl")
    for name in ("z", "y", "b", "a"):
        manifest.append({"path": name})
    manifest.finalize(["b", "a", "never seen"])
    assert [record["path"] for record in manifest.load()] == ["b", "a", "y", "z"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.symlink_to("/dev/full")
    manifest = Manifest(path)
    assert len(manifest.latest()) == 0
    with pytest.raises(WsssError) as caught:
        manifest.append({"path": "a"})
    assert caught.value.code == "disk_full" and "m.jsonl" in str(caught.value)


LIMITED = """
import resource, sys
from wsss_rt.errors import WsssError
from wsss_rt.io.manifest import Manifest
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
manifest = Manifest(sys.argv[1])
for number in range(100):
    try:
        manifest.append({"path": f"{number:03}", "filler": "x" * 50})
    except WsssError as error:
        print(number, error.code)
        break
"""


def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    count, code = done.stdout.split()
    assert code == "disk_full" and int(count) > 5
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line)["path"] for line in lines] == [f"{number:03}" for number in range(int(count))]


WRITER = """
import itertools, sys
from wsss_rt.io.manifest import Manifest
manifest = Manifest(sys.argv[1])
start = len(manifest.latest())
print("ready", flush=True)
for number in itertools.count(start):
    manifest.append({"path": str(number), "filler": "x" * 3000})
"""


def test_a_killed_run_loses_nothing_that_it_recorded(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.03 + 0.02 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    manifest = Manifest(path)
    names = [int(record["path"]) for record in manifest.load()]
    assert names == list(range(len(names))) and len(names) > 0 and manifest.damaged == 0


def test_config_hash_ignores_the_order_and_sees_every_value() -> None:
    config = {"scales": (1.0, 0.75), "flip": True, "model": Path("m.onnx"), "nested": {"b": 1, "a": 2}}
    same = {"nested": {"a": 2, "b": 1}, "model": "m.onnx", "flip": True, "scales": [1.0, 0.75]}
    assert config_hash(config) == config_hash(same) and len(config_hash(config)) == 64
    for change in ({"flip": False}, {"scales": [0.75, 1.0]}, {"extra": None}, {"nested": {"a": 2}}):
        assert config_hash(config | change) != config_hash(config)
    with pytest.raises(TypeError, match="object"):
        config_hash({"x": object()})
