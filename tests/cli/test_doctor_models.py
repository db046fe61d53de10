"""`doctor` on healthy and broken machines; `models` and the card that it shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.label_models import write_color_model
from wsss_rt import __version__, doctor
from wsss_rt.cli import app
from wsss_rt.cli.app import COMMANDS
from wsss_rt.doctor import BASE, EXTRAS, collect, problems
from wsss_rt.model_card import Recommended, read_card


def call(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wsss_rt", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return collect()


class TestDoctor:
    def test_it_knows_this_machine(self, report: dict[str, Any]) -> None:
        assert report["wsss_rt"]["version"] == __version__
        assert report["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
        for package in ("numpy", "pillow"):
            assert report["packages"][package] == {
                "state": "ok",
                "version": metadata.version(package),
                "needed": True,
            }
        assert "CPUExecutionProvider" in report["engines"]["onnxruntime"]
        assert report["codecs"]["JPEG"] is True
        assert report["processor"]["usable"] >= 1
        assert report["tiles"]["usable"] is not bool(report["tiles"]["why"])
        assert report["memory"]["total_bytes"] > 2**28
        assert report["commands"]["label"]["ready"]

    def test_it_says_what_packages_of_compiled_code_lack(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        lacks = doctor._aotinductor({"torch": {"state": "missing"}})["lacks"]
        assert "pip install 'torch" in lacks[0] and "no-such-compiler is missing" in lacks[1]
        monkeypatch.setenv("CXX", sys.executable)
        assert doctor._aotinductor({"torch": {"state": "ok"}}) == {"ready": True, "lacks": []}

    def test_it_covers_what_the_package_needs(self, root_dir: Path) -> None:
        project = tomllib.loads((root_dir / "pyproject.toml").read_text())["project"]

        def plain(requirements: list[str]) -> set[str]:
            return {entry.split(">")[0].split("[")[0].strip() for entry in requirements}

        assert {package.distributions[0] for package in BASE} >= plain(project["dependencies"])
        for extra, packages in EXTRAS.items():
            assert set(packages) == plain(project["optional-dependencies"][extra])

    def test_it_covers_every_command(self, report: dict[str, Any]) -> None:
        assert set(report["commands"]) == set(COMMANDS) - {"doctor"}

    def test_torch_is_read_and_not_imported(self) -> None:
        code = (
            "import sys; from wsss_rt.doctor import collect; collect(); "
            "sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'tensorrt', 'triton')))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_broken_and_missing_libraries_are_shown_with_the_reason(self, tmp_path: Path) -> None:
        for name, text in {
            "cv2": "raise ImportError('libGL.so.1: cannot open shared object file\\nmore')",
            "openvino": "raise SystemExit('no licence')",
            "onnxruntime": "1/0",
            "pycocotools": "raise ModuleNotFoundError('No module named pycocotools')",
        }.items():
            (tmp_path / f"{name}.py").write_text(text)
        path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
        done = call("doctor", "--json", env={"PYTHONPATH": path})
        assert done.returncode == 0 and "Traceback" not in done.stderr
        found = json.loads(done.stdout)
        packages = found["packages"]
        assert packages["opencv-python-headless"]["state"] == "broken"
        assert packages["opencv-python-headless"]["reason"] == (
            "ImportError: libGL.so.1: cannot open shared object file"
        )
        assert packages["openvino"]["reason"] == "SystemExit: no licence"
        assert packages["onnxruntime"]["reason"].startswith("ZeroDivisionError")
        label = found["commands"]["label"]
        assert not label["ready"] and "onnxruntime or openvino" in label["missing"] and label["fix"]
        assert found["engines"]["onnxruntime"]["error"].startswith("ZeroDivisionError")
        text = call("doctor", env={"PYTHONPATH": path})
        assert text.returncode == 0 and "Traceback" not in text.stderr
        assert "problem: opencv-python-headless is installed and cannot be imported" in text.stdout

    def test_missing_extras_come_with_their_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = metadata.version

        def version(name: str) -> str:
            if name in ("torch", "timm"):
                raise metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(metadata, "version", version)
        commands = collect()["commands"]
        assert {"torch", "timm"} <= set(commands["train"]["missing"])
        assert commands["train"]["fix"] == "pip install 'wsss-rt[train]'"
        assert commands["export"]["fix"] == "pip install 'wsss-rt[export]'"
        assert commands["label"]["ready"]

    def test_a_failing_driver_hides_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed: driver mismatch' >&2\nexit 9\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        found = collect()
        assert "driver mismatch" in found["gpu"]["error"]
        assert found["commands"]["eval"]["ready"]

    def test_a_gpu_is_listed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho 'NVIDIA X1, 600.10, 8192 MiB, 9.0'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert collect()["gpu"] == [
            {"name": "NVIDIA X1", "driver": "600.10", "memory": "8192 MiB", "compute_capability": "9.0"}
        ]

    def test_an_unusable_cache_folder_is_a_problem(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        found = collect()
        assert found["cache"]["writable"] is False
        assert any("XDG_CACHE_HOME" in line for line in problems(found))


class TestModels:
    @pytest.fixture
    def assets(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
        found = {
            name: write_color_model(tmp_path / f"{name}.onnx", quality={"scenes": {"miou": 0.61234}})
            for name in ("scenes-v1", "scenes-v2")
        }
        monkeypatch.setattr("wsss_rt.assets.embedded_models", lambda: found)
        return found

    def run(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
    ) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wsss-rt", "models", *words])
        with pytest.raises(SystemExit) as end:
            app.main()
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    def test_embedded_models_are_listed_with_the_default(
        self, assets: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, out, _ = self.run(monkeypatch, capsys)
        assert code == 0
        assert "scenes-v2 (default)" in out and "scenes-v1" in out and "color-probe" in out
        _, out, _ = self.run(monkeypatch, capsys, "--json")
        listed = json.loads(out)
        assert [(entry["name"], entry["default"]) for entry in listed] == [
            ("scenes-v1", False),
            ("scenes-v2", True),
        ]
        assert listed[0]["classes"] == ["red", "green", "blue"]

    def test_a_card_says_everything(
        self, assets: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, out, _ = self.run(monkeypatch, capsys, "scenes-v1")
        assert code == 0
        for text in (
            "color-probe (localizer, float32)",
            "3: red, green, blue",
            "any size, as it is, tokens of 8 px",
            "made for tests",
            "present from probability 0.5",
            "scenes.miou: 0.61234",
            read_card(assets["scenes-v1"]).weights_sha256,
        ):
            assert text in out, text

    def test_a_file_is_read_as_well_as_a_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        advice = Recommended(tag_thresholds=(0.25, 0.5, 0.75), provenance="x")
        path = write_color_model(tmp_path / "own.onnx", recommended=advice)
        _, out, _ = self.run(monkeypatch, capsys, str(path))
        assert "red 0.25, green 0.5, blue 0.75" in out
        _, out, _ = self.run(monkeypatch, capsys, str(path), "--json")
        assert json.loads(out)["recommended"]["tag_thresholds"] == [0.25, 0.5, 0.75]

    def test_a_changed_file_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write_color_model(tmp_path / "own.onnx")
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
        code, out, err = self.run(monkeypatch, capsys, str(path))
        assert (code, out) == (1, "") and "damaged or was changed" in err

    def test_an_unknown_name_offers_the_nearest(
        self, assets: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, _, err = self.run(monkeypatch, capsys, "scene-v1")
        assert code == 2 and "scenes-v1" in err
