"""Kernels proven in processes of their own: what is found there, and what those that end badly cost.

No GPU is needed: the interpreter stands for a device, and processes that end badly for a device that does.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.conftest import PutChildren
from wsss_rt.kernels import _dispatch, _proven
from wsss_rt.kernels._proven import FOLDERS, Outcome, subjects
from wsss_rt.kernels.proof import UNCHECKED, child, ensure_proof, watch
from wsss_rt.kernels.proof.__main__ import main as command_line
from wsss_rt.kernels.proof.child import check_of, failed, timed
from wsss_rt.kernels.proof.trial import trial

CPU = torch.device("cpu")
HERE = Path(__file__).parent
RIGHT, SLOWER = Outcome(True, "2.00 times"), Outcome(False, "slower: 0.80 times the reference's speed")

pytestmark = pytest.mark.usefixtures("fresh_proof")


@pytest.fixture
def endings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each process ended, in the words of who watched it."""
    found: list[str] = []
    ending = watch._Child._ending

    def noted(process: watch._Child, seconds: float, late: bool) -> str:
        found.append(ending(process, seconds, late))
        return found[-1]

    monkeypatch.setattr(watch._Child, "_ending", noted)
    return found


def checked(names: list[str], **settings: Any) -> dict[str, Outcome]:
    return dict(watch.run_checks(names, CPU, identity=_proven.identity(CPU), **settings))


class TestChildren:
    def test_two_kernels_are_proven_in_the_interpreter_once(
        self, provable: None, endings: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[str] = []
        names = ["spread_mass", "attention_aggregate bfloat16"]
        found = ensure_proof(CPU, names, tell=told.append)
        assert [entry.path for entry in found.values()] == ["triton"] * 2, found
        assert told[0].startswith("checking 2 of the Triton kernels on Triton's interpreter, once")
        assert told[1] == "2 of 2 kernels are taken"
        (ending,) = endings
        assert ending.startswith("ended with status 0")
        kept = json.loads(_proven.proof_file(_proven.identity(CPU)).read_text())
        for name in names:
            figures = kept["outcomes"][name]["figures"]
            assert 0 < figures["error"] <= figures["allowed"]
        # another process of the same user finds it
        _proven.forget()
        monkeypatch.setattr(watch, "_command", lambda device: ["/nonexistent"])
        assert ensure_proof(CPU, names, tell=told.append) == found and len(told) == 2

    def test_wrong_kernels_are_refused_with_their_figures(
        self, endings: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = [sys.executable, str(HERE / "broken_kernels.py"), "cpu"]
        monkeypatch.setattr(watch, "_command", lambda device: words)
        found = checked(["spread_mass", "map_planes", "planes_to_mask", "select_tokens"])
        assert [name for name, outcome in found.items() if outcome.passed] == ["planes_to_mask"]
        wrong = found["spread_mass"]
        assert (
            wrong.reason.startswith("wrong: error 1e-03, allowed ") and "priorities of spread" in wrong.reason
        )
        assert wrong.figures["error"] == pytest.approx(1e-3, rel=0.1) and wrong.figures["allowed"] < 1e-5
        assert found["map_planes"].reason.startswith("wrong: error nan")
        fault = found["select_tokens"]
        assert fault.reason == "RuntimeError: CUDA error: an illegal memory access was encountered"
        (ending,) = endings
        assert ending.startswith("ended with status 1")
        assert all(outcome.kept for outcome in found.values())

    def test_whatever_a_process_does_costs_one_operator(self, children: PutChildren) -> None:
        table = {
            "affinity_propagate float16": "SIGKILL",
            "affinity_propagate float32": "SIGSEGV",
            "select_tokens": "hang",
            "spread_mass": "rubbish",
            "map_to_mask": "leaves",
            "planes_to_mask": "raises",
            "dense_crf": "slower",
        }
        log = children(table)
        found = checked(subjects(), seconds=3.0)
        fault = "CUDA error: an illegal memory access was encountered"
        reasons = {name: found[name].reason for name in table}
        assert reasons == {
            "affinity_propagate float16": f"killed by SIGKILL: {fault}",
            "affinity_propagate float32": f"killed by SIGSEGV: {fault}",
            "select_tokens": "gave no answer within 3 s",
            "spread_mass": 'ended with status 0 and no result: {"passed": tr',
            "map_to_mask": "ended with status 7 and no result",
            "planes_to_mask": f"RuntimeError: {fault}",
            "dense_crf": "slower: 0.80 times the reference's speed",
        }
        assert {name for name, outcome in found.items() if not outcome.passed} == set(table)
        # each was begun once, in order: nothing is tried again behind an illegal access
        assert log.read_text().split("\n")[:-1] == subjects() == list(found)
        assert all(outcome.kept for outcome in found.values())

    def test_processes_that_come_to_nothing_prove_nothing_and_are_tried_another_day(
        self, children: PutChildren, provable: None
    ) -> None:
        children({"map_planes": "never begins"})
        told: list[str] = []
        names = ["map_to_mask", "map_planes", "random_walk"]
        found = ensure_proof(CPU, names, tell=told.append)
        assert found["map_to_mask"].path == "triton"
        why = "could not be checked: ended with status 4 and no result: the libraries do not load"
        assert found["map_planes"].reason == found["random_walk"].reason == why
        assert told[-1] == f"1 of 3 kernels are taken; not map_planes, random_walk: {why}"
        # not again in this process, but in the next
        assert ensure_proof(CPU, names, tell=told.append) == found and len(told) == 2
        _proven.forget()
        children({})
        assert {entry.path for entry in ensure_proof(CPU, names, tell=told.append).values()} == {"triton"}
        assert "checking 2 of" in told[2]

    def test_a_program_that_cannot_be_started_is_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watch, "_command", lambda device: ["/nonexistent/python"])
        (outcome,) = checked(["random_walk"]).values()
        assert not outcome.passed and not outcome.kept and "No such file" in outcome.reason

    def test_one_that_sees_another_device_is_not_believed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script = tmp_path / "child.py"
        script.write_text(
            'print(\'{"identity": {"device": "other"}}\')\n'
            'print(\'{"begin": "random_walk"}\')\n'
            'print(\'{"end": "random_walk", "passed": true, "reason": "", "figures": {}}\')\n'
        )
        monkeypatch.setattr(watch, "_command", lambda device: [sys.executable, str(script)])
        (outcome,) = checked(["random_walk"]).values()
        assert not outcome.passed and not outcome.kept and "another device" in outcome.reason

    def test_it_can_be_stopped_and_keeps_what_it_has(self, children: PutChildren, provable: None) -> None:
        log = children({"map_planes": "hang"})

        def stop() -> bool:
            return "map_planes" in log.read_text()

        told: list[str] = []
        found = ensure_proof(CPU, ["map_to_mask", "map_planes"], tell=told.append, stop=stop)
        assert len(told) == 1
        assert found["map_to_mask"].path == "triton" and found["map_planes"].reason == UNCHECKED
        assert list(_proven.read(_proven.identity(CPU))) == ["map_to_mask"]

    def test_a_child_ends_with_its_parent(self) -> None:
        """A parent that is killed must not leave a GPU busy behind it."""
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=_busy, args=(ours, theirs))
        process.start()
        theirs.close()
        assert ours.recv_bytes() == b"ready" and process.is_alive()
        ours.close()
        process.join(60)
        assert process.exitcode == 1


def _busy(ours: Connection, theirs: Connection) -> None:
    """A child whose kernel comes to no end."""
    ours.close()
    os.dup2(theirs.fileno(), 0)

    def endless(name: str, device: torch.device) -> Outcome:
        theirs.send_bytes(b"ready")
        time.sleep(600)
        return RIGHT

    child.prove = endless
    child.main(["cpu", "random_walk"])


class TestJudgement:
    def test_slower_kernels_are_refused(self) -> None:
        assert timed({"triton": 2.0, "reference": 1.6}, {}) == Outcome(
            False, SLOWER.reason, {"triton_ms": 2.0, "reference_ms": 1.6}
        )
        assert timed({"triton": 1.0, "reference": 1.0}, {}).passed

    def test_both_are_timed_in_turns_and_medians_count(self) -> None:
        calls: list[str] = []

        def clock(work: Callable[[], Any]) -> float:
            work()
            # one slow call in a while, as on any machine
            return (3.0 if calls[-1] == "triton" else 7.0) * (100 if len(calls) % 9 == 0 else 1)

        found = trial(lambda: calls.append(_dispatch.kernel_mode()), clock)
        assert found == {"triton": 3.0, "reference": 7.0}
        assert abs(calls.count("triton") - calls.count("reference")) == 0
        assert all({*calls[at : at + 2]} == {"triton", "reference"} for at in range(6, len(calls), 2))

    def test_what_may_end_otherwise_tomorrow_is_not_kept(self) -> None:
        for error in (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
            RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
        ):
            outcome = failed(error)
            assert not outcome.kept and outcome.reason.startswith("could not be checked: ")
            assert "\n" not in outcome.reason
        assert failed(RuntimeError("CUDA error: unspecified launch failure")).kept

    def test_every_operator_has_a_check(self) -> None:
        for name in subjects():
            operator, check, dtype = check_of(name)
            assert _proven.subject(operator, dtype) == name
            assert callable(check.judge) and callable(check.work)
        # and dispatchers know no other
        folder = Path(_dispatch.__file__).parent
        asked = {
            path.parent.name for path in folder.glob("*/__init__.py") if "choose_triton(" in path.read_text()
        }
        assert asked == set(FOLDERS.values())


def test_the_command_line_says_why_nothing_can_be_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["proof", "--device", "cpu", "--json"])
    assert command_line() == 1
    found = json.loads(capsys.readouterr().out)
    assert "this is a cpu" in found["hindrance"] and list(found["kernels"]) == subjects()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_kernel_is_right_on_this_gpu() -> None:
    words = [sys.executable, "-m", "wsss_rt.kernels.proof", "--json"]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=False).stdout)
    assert [name for name, entry in found["kernels"].items() if "reference_ms" not in entry["figures"]] == []
