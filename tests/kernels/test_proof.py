"""Kernels proven in processes of their own: what is found, how it is kept, and what ``auto`` makes of it.

No GPU is needed: the interpreter stands for a device, and processes that end badly for a device that does.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import run_python
from wsss_rt.kernels import _dispatch, _proven, last_path, standing
from wsss_rt.kernels._proven import DTYPES, FOLDERS, Outcome, subjects
from wsss_rt.kernels.attention_aggregate import attention_aggregate
from wsss_rt.kernels.masked_reattention import masked_reattention, spread_mass
from wsss_rt.kernels.proof import UNCHECKED, ensure_proof, hindrance, summary, watch
from wsss_rt.kernels.proof.child import check_of, failed, timed
from wsss_rt.kernels.proof.rule import packed_heads
from wsss_rt.kernels.proof.trial import trial

CPU = torch.device("cpu")
HERE = Path(__file__).parent
RIGHT, SLOWER = Outcome(True, "2.00 times"), Outcome(False, "slower: 0.80 times the reference's speed")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, and a process that remembers nothing, before and after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_proven, "_known", {})
    monkeypatch.setattr(_proven, "_taken", {})


@pytest.fixture
def provable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's interpreter counts as a device that can prove kernels."""
    monkeypatch.setattr("wsss_rt.kernels.proof.hindrance", lambda device: None)


@pytest.fixture
def as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU count as those of a GPU."""
    monkeypatch.setattr(_dispatch, "_on_gpu", lambda tensor: True)


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], Path]:
    """Puts ``proof_child.py`` in the child's place, and gives the log of what it began."""

    def put(table: dict[str, str]) -> Path:
        log = tmp_path / "begun"
        log.touch()
        words = [sys.executable, str(HERE / "proof_child.py"), json.dumps(table), str(log)]
        monkeypatch.setattr(watch, "_command", lambda device: words)
        return log

    return put


def checked(names: list[str], **settings: Any) -> dict[str, Outcome]:
    return dict(watch.run_checks(names, CPU, identity=_proven.identity(CPU), **settings))


class TestChildren:
    def test_two_kernels_are_proven_in_the_interpreter_once(
        self, provable: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[str] = []
        names = ["spread_mass", "attention_aggregate bfloat16"]
        found = ensure_proof(CPU, names, tell=told.append)
        assert [entry.path for entry in found.values()] == ["triton"] * 2, found
        assert told[0].startswith("checking 2 of the Triton kernels on Triton's interpreter, once")
        assert told[1] == "2 of 2 kernels are taken"
        kept = json.loads(_proven.proof_file(_proven.identity(CPU)).read_text())
        for name in names:
            figures = kept["outcomes"][name]["figures"]
            assert 0 < figures["error"] <= figures["allowed"]
        # another process of the same user finds it
        _proven.forget()
        monkeypatch.setattr(watch, "_command", lambda device: ["/nonexistent"])
        assert ensure_proof(CPU, names, tell=told.append) == found and len(told) == 2

    def test_wrong_kernels_are_refused_with_their_figures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        words = [sys.executable, str(HERE / "broken_kernels.py"), "cpu"]
        monkeypatch.setattr(watch, "_command", lambda device: words)
        found = checked(["spread_mass", "select_tokens", "map_planes", "planes_to_mask"])
        assert [name for name, outcome in found.items() if outcome.passed] == ["planes_to_mask"]
        wrong = found["spread_mass"]
        assert (
            wrong.reason.startswith("wrong: error 1e-03, allowed ") and "priorities of spread" in wrong.reason
        )
        assert wrong.figures["error"] == pytest.approx(1e-3, rel=0.1) and wrong.figures["allowed"] < 1e-5
        assert found["map_planes"].reason.startswith("wrong: error nan")
        # the next one ran in another process
        fault = found["select_tokens"]
        assert fault.reason == "RuntimeError: CUDA error: an illegal memory access was encountered"
        assert all(outcome.kept for outcome in found.values())

    def test_whatever_a_process_does_costs_one_operator(
        self, children: Callable[[dict[str, str]], Path]
    ) -> None:
        table = {
            "affinity_propagate float16": "SIGKILL",
            "affinity_propagate float32": "SIGSEGV",
            "select_tokens": "hang",
            "spread_mass": "rubbish",
            "map_to_mask": "leaves",
            "dense_crf": "slower",
        }
        log = children(table)
        found = checked(subjects(), seconds=1.0)
        fault = "CUDA error: an illegal memory access was encountered"
        reasons = {name: found[name].reason for name in table}
        assert reasons == {
            "affinity_propagate float16": f"killed by SIGKILL: {fault}",
            "affinity_propagate float32": f"killed by SIGSEGV: {fault}",
            "select_tokens": "gave no answer within 1 s",
            "spread_mass": 'ended with status 0 and no result: {"passed": tr',
            "map_to_mask": "ended with status 7 and no result",
            "dense_crf": "slower: 0.80 times the reference's speed",
        }
        assert {name for name, outcome in found.items() if not outcome.passed} == set(table)
        # each was begun once, in order: nothing is tried again behind an illegal access
        assert log.read_text().split("\n")[:-1] == subjects() == list(found)
        assert all(outcome.kept for outcome in found.values())

    def test_processes_that_come_to_nothing_prove_nothing_and_are_tried_another_day(
        self, children: Callable[[dict[str, str]], Path], provable: None
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

    def test_it_can_be_stopped_and_keeps_what_it_has(
        self, children: Callable[[dict[str, str]], Path], provable: None
    ) -> None:
        log = children({"map_planes": "hang"})

        def stop() -> bool:
            return "map_planes" in log.read_text()

        found = ensure_proof(CPU, ["map_to_mask", "map_planes"], tell=lambda _: None, stop=stop)
        assert found["map_to_mask"].path == "triton" and found["map_planes"].reason == UNCHECKED
        assert list(_proven.read(_proven.identity(CPU))) == ["map_to_mask"]

    def test_a_child_ends_with_its_parent(self, tmp_path: Path, root_dir: Path) -> None:
        """A parent that is killed must not leave a GPU busy behind it."""
        code = (
            "import os, subprocess, sys, time\n"
            "from wsss_rt.kernels.proof import child\n"
            "import threading\n"
            "threading.Thread(target=child._end_with_parent, daemon=True).start()\n"
            "print('ready', flush=True)\ntime.sleep(600)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root_dir,
        )  # fmt: skip
        assert process.stdout is not None and process.stdin is not None
        with process:
            assert process.stdout.readline() == b"ready\n"
            process.stdin.close()
            assert process.wait(60) == 1


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

    def test_every_operator_has_a_check_in_each_of_its_types(self) -> None:
        for name in subjects():
            operator, check, dtype = check_of(name)
            assert check.types == (DTYPES if operator in _proven.TYPED else ()), name
            assert dtype in (check.types or (torch.float32,))
        # and dispatchers know no other
        folder = Path(_dispatch.__file__).parent
        asked = {
            path.parent.name for path in folder.glob("*/__init__.py") if "choose_triton(" in path.read_text()
        }
        assert asked == set(FOLDERS.values())


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
        self, children: Callable[[dict[str, str]], Path], provable: None
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
        self, children: Callable[[dict[str, str]], Path], provable: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = children({})
        monkeypatch.setattr("wsss_rt.kernels.proof.WAIT_SECONDS", 0.2)
        told: list[str] = []
        with _proven.locked(_proven.identity(CPU), 1.0, lambda: None) as held:
            assert held
            found = ensure_proof(CPU, ["random_walk"], tell=told.append)
        assert found["random_walk"].reason == UNCHECKED and len(told) == 2 and log.read_text() == ""

    def test_a_cache_that_cannot_be_written_is_said_once(
        self,
        tmp_path: Path,
        children: Callable[[dict[str, str]], Path],
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


class TestAuto:
    """What runs when nobody asks for anything."""

    @pytest.fixture(autouse=True)
    def no_process_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*args: Any, **settings: Any) -> None:
            raise AssertionError("a dispatcher started a process")

        monkeypatch.setattr(subprocess, "Popen", never)

    def spread(self) -> str | None:
        mass = torch.rand(2, 9, generator=torch.Generator().manual_seed(0))
        spread_mass(mass, mass > 0.5, mass)
        return last_path("spread_mass")

    def test_it_follows_the_file(self, as_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.spread() == "reference"
        _proven.store(_proven.identity(CPU), {"spread_mass": RIGHT})
        # read once in a process: a model does not change its kernels in the middle
        assert self.spread() == "reference"
        _proven.forget()
        assert self.spread() == "triton[spread]"
        _proven.store(_proven.identity(CPU), {"spread_mass": SLOWER})
        _proven.forget()
        assert self.spread() == "reference"
        monkeypatch.setattr(_dispatch, "_on_gpu", lambda tensor: False)
        _proven.go_by(CPU, {"spread_mass": RIGHT})
        assert self.spread() == "reference"

    def test_each_type_has_a_proof_of_its_own(self, as_gpu: None) -> None:
        _proven.go_by(CPU, {"attention_aggregate bfloat16": RIGHT, "attention_aggregate float16": SLOWER})
        for dtype, path in zip(DTYPES, ("reference", "triton[attend]", "reference"), strict=True):
            attention_aggregate(*packed_heads(1, 1, 5, 32, dtype), 1)
            assert last_path("attention_aggregate") == path, dtype

    def test_tf32_was_not_proven(self, as_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
        _proven.go_by(CPU, {"attention_aggregate float32": RIGHT, "spread_mass": RIGHT})
        heads = packed_heads(1, 1, 5, 32, torch.float32)
        for precision, path in (("highest", "triton[attend]"), ("high", "reference")):
            monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
            attention_aggregate(*heads, 1)
            assert last_path("attention_aggregate") == path
        # it multiplies nothing
        assert self.spread() == "triton[spread]"

    def test_a_gradient_is_the_references(self, as_gpu: None) -> None:
        _proven.go_by(CPU, {"masked_reattention float32": RIGHT})
        q, k, v = packed_heads(1, 1, 5, 32, torch.float32)
        selected = torch.ones(1, 5, dtype=torch.bool)
        masked_reattention(q, k, v, selected, scale=0.2)
        assert last_path("masked_reattention") == "triton[reattend]"
        masked_reattention(q.clone().requires_grad_(), k, v, selected, scale=0.2)
        assert last_path("masked_reattention") == "reference"

    def test_a_compiled_model_asks_memory_alone(self, as_gpu: None) -> None:
        q, k, v = packed_heads(1, 1, 5, 32, torch.float32)
        selected = torch.ones(1, 5, dtype=torch.bool)
        _proven.store(_proven.identity(CPU), {"masked_reattention float32": RIGHT})
        torch._dynamo.reset()

        def call() -> torch.Tensor:
            return masked_reattention(q, k, v, selected, scale=0.2)

        compiled = torch.compile(call, fullgraph=True, backend="eager")
        compiled()
        assert last_path("masked_reattention") == "reference" and CPU not in _proven._taken
        _proven.recall(CPU)
        torch.testing.assert_close(compiled(), call())
        assert last_path("masked_reattention") == "triton[reattend]"

    def test_standing_says_what_runs_and_why(self, monkeypatch: pytest.MonkeyPatch, as_gpu: None) -> None:
        assert "a GPU, and this is a cpu" in standing("cpu")["random_walk"].reason
        assert hindrance(torch.device("cuda", 0)) is not None
        monkeypatch.setenv("WSSS_RT_KERNELS", "reference")
        assert standing("cpu")["random_walk"].reason == "WSSS_RT_KERNELS=reference asks for it"
        monkeypatch.delenv("WSSS_RT_KERNELS")
        monkeypatch.setattr("wsss_rt.kernels.proof.hindrance", lambda device: None)
        _proven.go_by(CPU, {"random_walk": RIGHT, "dense_crf": SLOWER})
        found = standing("cpu")
        assert list(found) == subjects() and found["map_planes"].reason == UNCHECKED
        assert (found["random_walk"].path, found["dense_crf"].path) == ("triton", "reference")
        assert found["dense_crf"].reason == SLOWER.reason
        few = {name: found[name] for name in ("random_walk", "dense_crf")}
        assert summary(few) == f"1 of 2 kernels are taken; not dense_crf: {SLOWER.reason}"
        monkeypatch.setenv("WSSS_RT_KERNELS", "triton")
        assert standing("cpu")["dense_crf"].path == "triton"

    def test_nothing_is_checked_where_auto_does_not_choose(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[str] = []
        for device in ("cpu", "cuda", "cuda:1"):
            assert {entry.path for entry in ensure_proof(device, tell=told.append).values()} == {"reference"}
        monkeypatch.setattr("wsss_rt.kernels.proof.hindrance", lambda device: None)
        monkeypatch.setenv("WSSS_RT_KERNELS", "triton")
        assert {entry.path for entry in ensure_proof("cpu", tell=told.append).values()} == {"triton"}
        assert told == []


def test_the_command_line_says_why_nothing_can_be_checked() -> None:
    done = run_python(
        "import runpy, sys; sys.argv = ['proof', '--json']\n"
        "runpy.run_module('wsss_rt.kernels.proof', run_name='__main__')",
    )
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["hindrance"] and list(found["kernels"]) == subjects()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_kernel_is_right_on_this_gpu() -> None:
    words = [sys.executable, "-m", "wsss_rt.kernels.proof", "--json"]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, check=False).stdout)
    assert [name for name, entry in found["kernels"].items() if "reference_ms" not in entry["figures"]] == []
