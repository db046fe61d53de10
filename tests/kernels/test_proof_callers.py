"""Who sees to it that a GPU proves the kernels before it runs them: label, bench, train, export, doctor.

The interpreter stands for the GPU, and ``kernels/proof_child.py`` for the process that checks.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.affinity_model import write_affinity_model  # noqa: E402
from tests.kernels.conftest import PutChildren  # noqa: E402
from tests.label_models import blocks, write_color_model  # noqa: E402
from tests.tensor_engine import TensorColorEngine  # noqa: E402
from wsss_rt import doctor  # noqa: E402
from wsss_rt.benchmark.pipeline import PipelineTask  # noqa: E402
from wsss_rt.cli.doctor import _show  # noqa: E402
from wsss_rt.kernels import last_path  # noqa: E402
from wsss_rt.kernels.proof import watch  # noqa: E402
from wsss_rt.label_plan import Job  # noqa: E402
from wsss_rt.label_run import label_folder  # noqa: E402
from wsss_rt.labeler import Labeler  # noqa: E402
from wsss_rt.options import LabelOptions  # noqa: E402
from wsss_rt.progress import Lines  # noqa: E402

SPEED = "2.00 times the reference's speed"


@pytest.fixture
def gpu(fresh_proof: None, provable: None, as_gpu: None, children: PutChildren) -> PutChildren:
    """The CPU counts as a GPU whose checks end as is said."""
    return children


def a_job(work: Path, out: str, **options: Any) -> Job:
    (work / "images").mkdir(exist_ok=True)
    Image.fromarray(blocks(3, height=24, width=33)).save(work / "images" / "0.png")
    model = write_color_model(work / "model.onnx")
    chosen = LabelOptions(localization="torch", **options)
    return Job(inputs=[str(work / "images")], out=work / out, model=model, formats=("png",), options=chosen)


def kernels_of(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job.out / "run.json").read_text())["engine"]["kernels"]
    return found


class TestLabel:
    def test_kernels_that_are_proven_run_and_stand_in_the_record(
        self,
        tmp_path: Path,
        gpu: PutChildren,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        log, job = gpu({}), a_job(tmp_path, "out")
        summary = label_folder(job, engine=TensorColorEngine(), progress=Lines())
        assert (summary.labelled, summary.failed) == (1, 0)
        assert last_path("map_to_mask") == "triton[range,decide]"
        assert kernels_of(job) == {"map_to_mask": {"path": "triton", "reason": SPEED}}
        err = capsys.readouterr().err
        assert "wsss-rt: checking 1 of the Triton kernels on Triton's interpreter, once" in err
        assert "wsss-rt: 1 of 1 kernels are taken" in err
        # once, and only what this run needs
        label_folder(a_job(tmp_path, "again"), engine=TensorColorEngine(), progress=Lines())
        assert log.read_text() == "map_to_mask\n" and "checking" not in capsys.readouterr().err

    def test_those_that_are_not_leave_the_work_to_pytorch(self, tmp_path: Path, gpu: PutChildren) -> None:
        gpu({"dense_crf": "SIGSEGV", "random_walk": "slower"})
        affinity = str(write_affinity_model(tmp_path / "affinity.onnx"))
        job = a_job(tmp_path, "out", refine="crf+walk", affinity=affinity, backend="onnxruntime")
        summary = label_folder(job, engine=TensorColorEngine())
        assert (summary.labelled, summary.failed) == (1, 0)
        found = kernels_of(job)
        assert list(found) == ["map_planes", "planes_to_mask", "dense_crf", "random_walk"]
        assert [entry["path"] for entry in found.values()] == ["triton", "triton", "reference", "reference"]
        assert found["dense_crf"]["reason"].startswith("killed by SIGSEGV")
        assert found["random_walk"]["reason"] == "slower: 0.80 times the reference's speed"
        assert (last_path("dense_crf"), last_path("random_walk")) == ("reference", "reference")
        assert last_path("planes_to_mask") == "triton[decide]"

    def test_on_a_cpu_the_record_says_so_and_nothing_is_started(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "_command", lambda device: pytest.fail("a check was started"))
        job = a_job(tmp_path, "out")
        label_folder(job, engine=TensorColorEngine())
        assert kernels_of(job)["map_to_mask"] == {
            "path": "reference",
            "reason": "kernels run on a GPU, and this is a cpu",
        }

    def test_a_labeler_of_ones_own_checks_when_it_is_told_to_warm_up(self, gpu: PutChildren) -> None:
        gpu({})
        labeler = Labeler(engine=TensorColorEngine(), localization="torch")
        labeler.label(blocks(3, height=24, width=33))
        assert last_path("map_to_mask") == "reference"
        assert "doctor --kernels" in labeler.kernels["map_to_mask"]["reason"]
        told: list[str] = []
        labeler.warm_up(told.append)
        labeler.label(blocks(3, height=24, width=33))
        assert last_path("map_to_mask") == "triton[range,decide]" and len(told) == 2
        assert Labeler(engine=TensorColorEngine(), localization="numpy").kernels == {}

    def test_bench_tells_before_its_first_run(self, tmp_path: Path, gpu: PutChildren) -> None:
        log, told = gpu({}), list[str]()
        PipelineTask(a_job(tmp_path, "out"), TensorColorEngine(), images=1, tell=told.append).warm_up()
        assert len(told) == 2 and told[0].startswith("checking") and log.read_text() == "map_to_mask\n"


class Ended(Exception):
    """Far enough."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """What a proof was asked of, as (device, subjects)."""
    found: list[tuple[str, list[str]]] = []

    def ensure(device: Any, names: Sequence[str], **_: Any) -> None:
        found.append((str(device), list(names)))

    for module in ("wsss_rt.export.aotinductor", "wsss_rt.training.setup"):
        pytest.importorskip(module)
        monkeypatch.setattr(f"{module}.ensure_proof", ensure)
    return found


def test_export_for_a_gpu_proves_what_the_model_holds_before_it_compiles(
    asked: list[tuple[str, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.exported import tiny_config, tiny_model
    from wsss_rt.export import aotinductor

    def compiled(*_: Any, **__: Any) -> None:
        raise Ended

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(aotinductor, "check_compiler", lambda: None)
    monkeypatch.setattr(aotinductor, "_compile", compiled)
    settings: dict[str, Any] = {"precision": "bfloat16"}
    for device, kernels in (("cuda", "auto"), ("cuda", "reference"), ("cpu", "auto")):
        with pytest.raises(Ended):
            aotinductor.export_aotinductor(
                tiny_model(), tiny_config(), tmp_path / "m.pt2", device=device, kernels=kernels, **settings
            )
    names = [
        f"{operator} {kind}"
        for operator in ("attention_aggregate", "affinity_propagate")
        for kind in ("bfloat16", "float32")
    ]
    assert asked == [("cuda", names)]


def test_training_proves_what_the_model_runs_before_the_first_step(
    asked: list[tuple[str, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.training.builders import make_folder, tiny_config
    from wsss_rt.training import fit as loop
    from wsss_rt.training.data.build import build_data

    def ended(*_: Any, **__: Any) -> None:
        raise Ended

    monkeypatch.setattr(loop._Loop, "run", ended)
    config = tiny_config(make_folder(tmp_path / "data", 8))
    with pytest.raises(Ended):
        loop.fit(config, build_data(config.data, seed=config.run.seed), tmp_path / "run")
    assert asked == [("cpu", ["attention_aggregate float32", "affinity_propagate float32"])]


class TestDoctor:
    PACKAGES = {"torch": {"state": "ok"}, "triton": {"state": "ok"}}

    def test_it_says_why_no_kernel_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        missing = {**self.PACKAGES, "triton": {"state": "missing"}}
        assert doctor._kernels(missing, check=True)["hindrance"] == "triton is not installed"
        monkeypatch.setattr("wsss_rt.gpu_driver.driver_problem", lambda: "no driver")
        assert doctor._kernels(self.PACKAGES, check=False)["hindrance"] == "no driver"

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    def test_it_asks_a_process_that_has_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wsss_rt.gpu_driver.driver_problem", lambda: "")
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        found = doctor._kernels(self.PACKAGES, check=False)
        assert found["hindrance"] == "torch sees no GPU" and len(found["kernels"]) == 16

    def test_it_shows_what_runs_and_checks_when_asked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        report = doctor.collect()
        kernels = {
            "map_to_mask": {"path": "triton", "reason": SPEED, "figures": {}},
            "dense_crf": {"path": "reference", "reason": "killed by SIGSEGV", "figures": {}},
        }
        answer = {"hindrance": None, "identity": {"device": "NVIDIA X1"}, "kernels": kernels}
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\necho \"$@\" >&2\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        monkeypatch.setattr("wsss_rt.gpu_driver.driver_problem", lambda: "")
        capfd.readouterr()
        found = doctor._kernels(self.PACKAGES, check=True)
        assert capfd.readouterr().err == "-P -m wsss_rt.kernels.proof --json\n"
        assert doctor._kernels(self.PACKAGES, check=False) == found == answer
        assert capfd.readouterr().err == ""
        _show({**report, "kernels": found})
        out = capfd.readouterr().out
        assert "1 of 2 run on NVIDIA X1" in out and "killed by SIGSEGV" in out
        python.write_text("#!/bin/sh\necho 'ImportError: libcudart' >&2\nexit 1\n")
        _show({**report, "kernels": doctor._guarded(lambda: doctor._kernels(self.PACKAGES, check=False))})
        assert "unknown, RuntimeError: ImportError: libcudart" in capfd.readouterr().out


def test_the_packages_of_this_file_run_from_any_folder(tmp_path: Path) -> None:
    """A child's modules are its parent's, wherever the user happens to be."""
    found = watch._environment(torch.device("cuda", 0))
    assert "TRITON_INTERPRET" not in found and str(Path(__file__).parents[2]) in found["PYTHONPATH"]
    assert watch._environment(torch.device("cpu"))["TRITON_INTERPRET"] == "1"
    assert "" not in found["PYTHONPATH"].split(os.pathsep)
