"""What was proven, as it is kept: whole, for one device and version, by one process at a time."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.conftest import PutChildren
from wsss_rt.kernels import _proven
from wsss_rt.kernels._proven import Outcome
from wsss_rt.kernels.proof import UNCHECKED, ensure_proof

CPU = torch.device("cpu")
HERE = Path(__file__).parent
RIGHT, SLOWER = Outcome(True, "2.00 times"), Outcome(False, "slower: 0.80 times the reference's speed")

pytestmark = pytest.mark.usefixtures("fresh_proof")


class TestFile:
    def outcomes(self) -> dict[str, Outcome]:
        return {"random_walk": RIGHT, "dense_crf": SLOWER}

    def test_what_is_stored_is_read(self) -> None:
        of = _proven.identity(CPU)
        assert _proven.read(of) == {}
        _proven.store(of, self.outcomes())
        _proven.store(of, {"dense_crf": RIGHT, "map_planes": Outcome(False, "memory", {}, kept=False)})
        assert _proven.read(of) == {"random_walk": RIGHT, "dense_crf": RIGHT}

    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: text[: len(text) // 2],
            lambda text: "",
            lambda text: "\x00\xff",
            lambda text: "[" * 100_000,
            lambda text: "[1, 2]",
            lambda text: "null",
            lambda text: '{"outcomes": {}}',
            lambda text: text.replace('"format": 1', '"format": 0'),
            lambda text: text.replace('"format": 1', '"format": "1"'),
            lambda text: text.replace('"passed": true', '"passed": 1'),
            lambda text: text.replace('"reason": "2.00 times"', '"reason": null'),
            lambda text: text.replace('"figures": {}', '"figures": {"error": "small"}'),
            lambda text: text.replace('"figures": {}', '"figures": {"error": 1' + "0" * 400 + "}"),
            lambda text: json.dumps({**json.loads(text), "outcomes": ["random_walk"]}),
            lambda text: json.dumps({**json.loads(text), "identity": {}}),
        ],
    )
    def test_torn_foreign_and_older_files_prove_nothing(
        self, damage: Callable[[str], str], as_gpu: None
    ) -> None:
        of = _proven.identity(CPU)
        _proven.store(of, self.outcomes())
        path = _proven.proof_file(of)
        damaged = damage(path.read_text())
        assert damaged != path.read_text()
        path.write_text(damaged, encoding="latin-1")
        assert _proven.read(of) == {}
        assert not _proven.takes("random_walk", (torch.zeros(1),))
        _proven.store(of, self.outcomes())
        assert _proven.read(of) == self.outcomes()

    def test_a_folder_in_its_place_proves_nothing(self) -> None:
        _proven.proof_file(_proven.identity(CPU)).mkdir(parents=True)
        assert _proven.read(_proven.identity(CPU)) == {}

    @pytest.mark.parametrize(
        "key", ["device", "compute_capability", "driver", "torch", "triton", "kernels", "tiles"]
    )
    def test_another_driver_library_or_source_has_a_proof_of_its_own(self, key: str) -> None:
        of = _proven.identity(CPU)
        _proven.store(of, self.outcomes())
        other = {**of, key: "another"}
        assert _proven.read(other) == {}
        # also where it got the very file
        shutil.copyfile(_proven.proof_file(of), _proven.proof_file(other))
        assert _proven.read(other) == {}
        _proven.store(other, {"random_walk": SLOWER})
        assert _proven.read(of) == self.outcomes() and _proven.read(other) == {"random_walk": SLOWER}

    def test_every_module_of_the_package_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy = tmp_path / "kernels"
        shutil.copytree(Path(_proven.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
        before = _proven._sources.__wrapped__()
        monkeypatch.setattr(_proven, "__file__", str(copy / "_proven.py"))
        assert _proven._sources.__wrapped__() == before
        with (copy / "_blocks.py").open("a") as file:
            file.write("# another\n")
        assert _proven._sources.__wrapped__() != before

    def test_the_driver_is_known_by_its_module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        told = tmp_path / "version"
        told.write_text(
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs@U20)\n"
            "GCC version:  gcc version 11.4.0\n"
        )
        monkeypatch.setattr(_proven, "_DRIVER_FILE", told)
        assert _proven._driver().startswith("570.86.15")
        monkeypatch.setattr(_proven, "_DRIVER_FILE", tmp_path / "none")
        assert "570" not in _proven._driver()

    def test_two_writers_lose_nothing_and_no_reader_sees_half(self) -> None:
        of, context = dict(_proven.identity(CPU)), multiprocessing.get_context("fork")
        writers = [context.Process(target=_write_many, args=(of, index)) for index in range(2)]
        for writer in writers:
            writer.start()
        seen = 0
        while any(writer.is_alive() for writer in writers):
            count = len(_proven.read(of))
            assert count >= seen
            seen = count
        for writer in writers:
            writer.join()
            assert writer.exitcode == 0
        assert len(_proven.read(of)) == 2 * 25
        left = {path.suffix for path in _proven.proof_file(of).parent.iterdir()}
        assert left == {".json", ".lock"}

    def test_the_second_process_waits_and_goes_by_what_the_first_found(
        self, children: PutChildren, provable: None
    ) -> None:
        log = children({"random_walk": "slow"})
        told: dict[str, list[str]] = {"first": [], "second": []}
        found: dict[str, Any] = {}
        started = threading.Event()

        def tell(line: str) -> None:
            told["first"].append(line)
            started.set()

        first = threading.Thread(
            target=lambda: found.update(first=ensure_proof(CPU, ["random_walk"], tell=tell))
        )
        first.start()
        assert started.wait(60)
        found["second"] = ensure_proof(CPU, ["random_walk"], tell=told["second"].append)
        first.join()
        assert found["first"] == found["second"] and found["first"]["random_walk"].path == "triton"
        assert told["second"] == [
            "another process checks the Triton kernels on Triton's interpreter; waiting for it"
        ]
        assert log.read_text() == "random_walk\n"

    def test_a_wait_that_is_too_long_ends_with_the_reference(
        self, children: PutChildren, provable: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = children({})
        monkeypatch.setattr("wsss_rt.kernels.proof.WAIT_SECONDS", 0.2)
        told: list[str] = []
        with _proven.locked(_proven.identity(CPU), 1.0, lambda: None) as held:
            assert held
            found = ensure_proof(CPU, ["random_walk"], tell=told.append)
        assert found["random_walk"].reason == UNCHECKED and len(told) == 2 and log.read_text() == ""

    def test_a_wait_can_be_stopped(self, children: PutChildren, provable: None) -> None:
        log, told = children({}), list[str]()
        with _proven.locked(_proven.identity(CPU), 1.0, lambda: None) as held:
            assert held
            ensure_proof(CPU, ["random_walk"], tell=told.append, stop=lambda: bool(told))
        assert len(told) == 1 and "waiting" in told[0] and log.read_text() == ""

    def test_a_cache_that_cannot_be_written_is_said_once(
        self,
        tmp_path: Path,
        children: PutChildren,
        provable: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        children({})
        told: list[str] = []
        found = ensure_proof(CPU, ["map_planes", "random_walk"], tell=told.append)
        assert {entry.path for entry in found.values()} == {"triton"}
        assert len(told) == 3 and "XDG_CACHE_HOME" in told[1]


def _write_many(of: dict[str, str], index: int) -> None:
    for number in range(25):
        with _proven.locked(of, 60.0, lambda: None):
            _proven.store(of, {f"operator {index} {number}": RIGHT})
