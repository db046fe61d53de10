"""The package as a stranger installs it: complete, lean, quick to answer."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.processes import run_python
from wsss_rt.cli.app import COMMANDS


def packaging(root_dir: Path) -> dict:
    return tomllib.loads((root_dir / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_with_modules_is_a_listed_package(root_dir: Path) -> None:
    settings = packaging(root_dir)
    folders = {folder: name for name, folder in settings["package-dir"].items()}
    found = set()
    for folder, name in folders.items():
        for init in (root_dir / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(root_dir / folder).parts
            found.add(".".join((name, *inner)))
    assert found == set(settings["packages"])


def test_no_module_lies_in_a_folder_without_init(root_dir: Path) -> None:
    for folder in packaging(root_dir)["package-dir"].values():
        for module in (root_dir / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), f"{module} is in no package"


def test_runtime_and_help_import_no_torch() -> None:
    code = (
        "import sys; sys.argv=['wsss-rt','--help']\n"
        "from wsss_rt.cli.app import main\n"
        "import wsss_rt.labeler, wsss_rt.evaluate, wsss_rt.doctor, wsss_rt.scenes\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "bad={'torch','timm','onnx','matplotlib','lightning','numba'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout


def test_overview_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv=['wsss-rt','--help']\n"
        "from wsss_rt.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "bad={'numpy','cv2','PIL','onnxruntime','openvino','numba'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_has_help_with_an_example(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wsss_rt", command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"wsss-rt {command}" in done.stdout


def test_misspelt_command_offers_the_nearest() -> None:
    done = subprocess.run([sys.executable, "-m", "wsss_rt", "lable"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "label" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["train", "export"])
def test_without_torch_the_command_says_what_to_install(command: str, tmp_path: Path) -> None:
    """None in ``sys.modules`` makes a package as absent as if it were not installed."""
    arguments = {
        "train": ["mctformer-v2", "--data", "scenes", "--out", str(tmp_path / "run")],
        "export": [str(tmp_path), "--out", str(tmp_path / "model.onnx")],
    }
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv=['wsss-rt', {command!r}, *{arguments[command]!r}]\n"
        "from wsss_rt.cli.app import main\nmain()\n"
    )
    done = run_python(code)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and f"wsss-rt[{command}]" in lines[0]
    assert not any(tmp_path.iterdir())
