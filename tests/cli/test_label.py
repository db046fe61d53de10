"""`wsss-rt label`: inputs, outputs, settings, exit status."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.label_runs import ROOT, Cli, manifest, run, tree, write_images
from tests.label_models import write_color_model
from tests.nasty import NOT_UTF8, build_nasty_folder
from wsss_rt.classes import voc_palette
from wsss_rt.io.manifest import RunLock

pytest.importorskip("onnx")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed ONNX model that finds red, green and blue."""
    return write_color_model(tmp_path_factory.mktemp("model") / "color.onnx")


@pytest.fixture()
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line, in an empty folder."""
    return Cli(tmp_path, monkeypatch, capsys)


def test_writes_everything_it_promises(cli: Cli, model: Path) -> None:
    images = write_images(cli.folder / "images" / "deep", 4).parent
    ended = cli("label", images, "--out", "out", "--model", model, "--json")
    out = cli.folder / "out"
    assert ended.code == 0
    assert sorted(str(path.relative_to(out / "masks")) for path in (out / "masks").rglob("*.png")) == [
        f"deep/{index:04d}.png" for index in range(4)
    ]
    with Image.open(out / "masks" / "deep" / "0000.png") as mask:
        assert mask.mode == "P"
        assert tuple(mask.getpalette()[:9]) == sum(voc_palette()[:3], ())
        assert set(np.unique(np.asarray(mask))) <= {0, 1, 2, 3}
    coco = json.loads((out / "annotations.coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [f"deep/{i:04d}.png" for i in range(4)]
    assert b"deep/0003.png" in (out / "report.html").read_bytes()
    record = manifest(out)["deep/0001.png"]
    assert record["status"] == "ok"
    assert record["tags"] == [tag for tag in ("red", "green", "blue") if record["scores"][tag] >= 0.5]
    assert record["size"] == [96, 64]
    assert {"read", "decode", "prepare", "infer", "localize", "decide", "encode", "write"} <= set(
        record["timings"]
    )
    ran = json.loads((out / "run.json").read_text())
    assert ran["status"] == "finished"
    assert ran["counts"] == {"images": 4, "labelled": 4, "failed": 0, "errors": {}}
    assert ran["engine"]["choice"]["picked"] == ran["engine"]["backend"]
    assert ran["thresholds"]["background"] == {"value": 0.4, "from": "model card"}
    assert ran["session"]["stages_ms"]["infer"]["count"] == 4
    summary = json.loads(ended.out)
    assert (summary["labelled"], summary["exit_code"]) == (4, 0)
    assert str(out / "report.html").endswith(summary["files"][2])
    assert not (out / ".wsss-rt.lock").exists()


def test_a_folder_from_the_wild(cli: Cli, model: Path) -> None:
    nasty = build_nasty_folder(cli.folder / "nasty")
    ended = cli("label", "nasty", "--out", "out", "--model", model)
    out = cli.folder / "out"
    assert ended.code == 3
    assert "Traceback" not in ended.err
    lines = (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    from wsss_rt.io.manifest import decode_record

    records = {record["path"]: record for line in lines if (record := decode_record(line.encode()))}
    assert sorted(records) == nasty.listed()
    failed = {name: record["error"]["code"] for name, record in records.items() if record["error"]}
    assert failed == {name: code.value for name, code in nasty.bad.items()}
    for name, size in nasty.good.items():
        with Image.open(os.fsencode(out / records[name]["mask"])) as mask:
            assert mask.size == size, name
            mask.load()
    masks = [records[name]["mask"] for name in nasty.good]
    assert len(set(masks)) == len(masks)
    assert records[NOT_UTF8]["status"] == "ok"
    for name, orientation in nasty.orientations.items():
        assert records[name]["orientation"] == orientation
    for name in ("truncated.jpg", "empty.jpg", "pipe.jpg"):
        assert f"{name}: {failed[name]}" in ended.err


def test_tags_from_a_table(cli: Cli, model: Path) -> None:
    write_images(cli.folder / "images", 3)
    (cli.folder / "tags.csv").write_text("image,tags\n0000.png,red\n0002.png,blue;red\n")
    ended = cli("label", "images", "--tags", "tags.csv", "--out", "out", "--model", model)
    records = manifest(cli.folder / "out")
    assert ended.code == 3
    assert "1 of 3 images have no tags" in ended.err
    assert records["0000.png"]["tags"] == ["red"]
    assert records["0000.png"]["tag_source"] == "given"
    assert records["0001.png"]["error"]["code"] == "no_tags"
    assert records["0002.png"]["tags"] == ["red", "blue"]


def test_tags_from_folder_names(cli: Cli, model: Path) -> None:
    write_images(cli.folder / "images" / "red", 1)
    write_images(cli.folder / "images" / "blue", 1)
    assert cli("label", "images", "--tags", "folders", "--out", "out", "--model", model).code == 0
    records = manifest(cli.folder / "out")
    assert {name: record["tags"] for name, record in records.items()} == {
        "blue/0000.png": ["blue"],
        "red/0000.png": ["red"],
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tags", "tags.csv"], "'green'"),
        (["--tags", "other.csv"], "none of the 2 images has tags"),
        (["--tags", "missing.csv"], "missing.csv"),
        (["--format", "cocoo"], "'coco'"),
        (["--refine", "crff"], "did you mean 'crf'?"),
        (["--crf-iterations", "3"], "add --refine crf"),
        (["--ignore-band", "0.6,0.3"], "LO < HI"),
        (["--ignore-band", "0.6"], "two numbers"),
        (["--scales", "1.0,x"], "numbers separated by commas"),
        (["--background", "1.5"], "0..1"),
        (["--backend", "vulkan"], "onnxruntime"),
        (["--limit", "0"], "at least 1"),
        (["--batch", "many"], "auto"),
        (["--model", "scenez"], "scenez"),
        (["--config", "bad.toml"], "'background'"),
        (["--config", "missing.toml"], "missing.toml"),
        (["nowhere"], "nowhere"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(
    cli: Cli, model: Path, words: list[str], said: str
) -> None:
    write_images(cli.folder / "images", 2)
    (cli.folder / "tags.csv").write_text("image,tags\n0000.png,gren\n")
    (cli.folder / "other.csv").write_text("image,tags\nx.png,red\n")
    (cli.folder / "bad.toml").write_text("[label]\nbackgroun = 0.3\n")
    named = [] if "--model" in words else ["--model", model]
    ended = cli("label", "images", "--out", "out", *named, *words)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert said in ended.err
    assert list((cli.folder / "out").rglob("*.png")) == []
    assert not (cli.folder / "out" / "manifest.jsonl").exists()


def test_flags_go_before_the_config_file(cli: Cli, model: Path) -> None:
    write_images(cli.folder / "images", 1)
    (cli.folder / "label.toml").write_text(
        f'input = "images"\nmodel = "{model}"\n[label]\nbackground = 0.3\nscales = [1.0, 0.5]\n'
        'flip = false\nformat = ["png"]\nignore_band = [0.2, 0.3]\n'
    )
    ended = cli("label", "--config", "label.toml", "--out", "out", "--background", "0.25", "--flip")
    assert ended.code == 0
    ran = json.loads((cli.folder / "out" / "run.json").read_text())
    assert ran["identity"]["background"] == 0.25
    assert ran["identity"]["scales"] == [1.0, 0.5]
    assert ran["identity"]["flip"] is True
    assert ran["identity"]["ignore_band"] == [0.2, 0.3]
    assert ran["thresholds"]["background"]["from"] == "command"
    assert not (cli.folder / "out" / "report.html").exists()


def test_dry_run_writes_nothing(cli: Cli, model: Path) -> None:
    build_nasty_folder(cli.folder / "nasty")
    before = sorted(path.name for path in cli.folder.iterdir())
    ended = cli("label", "nasty", "--out", "out", "--model", model, "--dry-run", "--json")
    assert ended.code == 0
    forecast = json.loads(ended.out)
    assert forecast["images"] == forecast["readable"] + sum(forecast["problems"].values())
    assert forecast["problems"]["too_large"] == 1
    assert forecast["problems"]["not_a_file"] == 2
    assert sum(forecast["longest_side"].values()) == forecast["readable"]
    assert sorted(path.name for path in cli.folder.iterdir()) == before
    assert "would be written" in cli("label", "nasty", "--model", model, "--dry-run").out


def test_limit_and_paths_on_stdin(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(cli.folder / "images", 5)
    assert cli("label", images, "--limit", "2", "--out", "two", "--model", model).code == 0
    assert sorted(manifest(cli.folder / "two")) == ["0000.png", "0001.png"]
    listed = io.TextIOWrapper(io.BytesIO(f"{images}/0004.png\n{images}/0001.png\n".encode()))
    monkeypatch.setattr(sys, "stdin", listed)
    assert cli("label", "-", "--out", "listed", "--model", model).code == 0
    assert sorted(manifest(cli.folder / "listed")) == ["0001.png", "0004.png"]


@pytest.mark.parametrize(("words", "failures"), [(["--fail-fast"], 1), (["--max-errors", "1"], 2)])
def test_stops_at_the_limit_of_errors(cli: Cli, model: Path, words: list[str], failures: int) -> None:
    images = write_images(cli.folder / "images", 8)
    for index in (1, 3, 5):
        (images / f"{index:04d}.png").write_bytes(b"")
    ended = cli("label", images, "--out", "out", "--model", model, *words)
    assert ended.code == 3
    assert "stopped:" in ended.err
    statuses = [record["status"] for record in manifest(cli.folder / "out").values()]
    assert statuses.count("failed") == failures
    assert len(statuses) == 2 * failures


def test_a_bad_image_changes_no_other_mask(cli: Cli, model: Path) -> None:
    images = write_images(cli.folder / "images", 4)
    words = ("--model", model, "--batch", "4", "--backend", "onnxruntime")
    cli("label", images, "--out", "clean", *words)
    (images / "0002.png").write_bytes((images / "0002.png").read_bytes()[:150])
    assert cli("label", images, "--out", "mixed", *words).code == 3
    for index in (0, 1, 3):
        name = f"masks/{index:04d}.png"
        assert (cli.folder / "mixed" / name).read_bytes() == (cli.folder / "clean" / name).read_bytes()
    assert not (cli.folder / "mixed" / "masks" / "0002.png").exists()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_masks_do_not_depend_on_batch_or_threads(cli: Cli, model: Path, backend: str) -> None:
    pytest.importorskip(backend)
    images = write_images(cli.folder / "images", 5)
    words = ("--model", model, "--backend", backend, "--format", "png")
    cli("label", images, "--out", "one", *words)
    cli("label", images, "--out", "many", *words, "--batch", "5", "--threads", "1")
    for index in range(5):
        name = f"masks/{index:04d}.png"
        assert (cli.folder / "one" / name).read_bytes() == (cli.folder / "many" / name).read_bytes()


def test_second_run_labels_only_what_changed(cli: Cli, model: Path) -> None:
    images = write_images(cli.folder / "images", 6)
    words = ("label", images, "--out", "out", "--model", model, "--backend", "onnxruntime")
    cli(*words)
    out = cli.folder / "out"
    whole = tree(out)
    stamps = {path.name: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    (out / "masks" / "0001.png").unlink()
    (out / "masks" / "0002.png").write_bytes(b"damaged")
    os.utime(images / "0003.png")
    ended = cli(*words)
    assert ended.code == 0
    assert "4 of them by an earlier run" in ended.err
    renewed = {
        path.name for path in (out / "masks").iterdir() if stamps[path.name] != path.stat().st_mtime_ns
    }
    assert renewed == {"0001.png", "0002.png"}
    after = tree(out)
    for content in (whole, after):
        content["run.json"].pop("command")
    assert after == whole
    shutil.copy(images / "0000.png", images / "0005.png")
    assert "5 of them" in cli(*words).err
    assert (out / "masks" / "0005.png").read_bytes() == (out / "masks" / "0000.png").read_bytes()


def test_an_image_that_was_damaged_later_loses_its_mask(cli: Cli, model: Path) -> None:
    images = write_images(cli.folder / "images", 2)
    cli("label", images, "--out", "out", "--model", model)
    (images / "0001.png").write_bytes(b"")
    assert cli("label", images, "--out", "out", "--model", model).code == 3
    assert not (cli.folder / "out" / "masks" / "0001.png").exists()
    (coco,) = json.loads((cli.folder / "out" / "annotations.coco.json").read_text())["images"]
    assert coco["file_name"] == "0000.png"


def test_changed_tags_are_labelled_again(cli: Cli, model: Path) -> None:
    images = write_images(cli.folder / "images", 2)
    table = cli.folder / "tags.csv"
    words = ("label", images, "--out", "out", "--model", model, "--tags", table)
    table.write_text("image,tags\n0000.png,red\n0001.png,red\n")
    cli(*words)
    table.write_text("image,tags\n0000.png,red\n0001.png,blue\n")
    assert "1 of them by an earlier run" in cli(*words).err
    assert manifest(cli.folder / "out")["0001.png"]["tags"] == ["blue"]


def test_another_configuration_is_refused(cli: Cli, model: Path) -> None:
    images = write_images(cli.folder / "images", 2)
    words = ("label", images, "--out", "out", "--model", model)
    cli(*words)
    before = tree(cli.folder / "out")
    ended = cli(*words, "--background", "0.3", "--no-flip")
    assert ended.code == 2
    assert "background was 0.4, now 0.3; flip was true, now false" in ended.err
    assert "--no-resume" in ended.err
    assert tree(cli.folder / "out") == before
    assert cli(*words, "--background", "0.3", "--no-resume").code == 0
    assert json.loads((cli.folder / "out" / "run.json").read_text())["identity"]["background"] == 0.3
    assert cli(*words).code == 2


def test_a_format_can_be_added_later(cli: Cli, model: Path) -> None:
    images = write_images(cli.folder / "images", 2)
    words = ("label", images, "--out", "out", "--model", model, "--format")
    cli(*words, "png")
    masks = {path.name: path.read_bytes() for path in (cli.folder / "out" / "masks").iterdir()}
    assert cli(*words, "png,coco").code == 0
    assert len(json.loads((cli.folder / "out" / "annotations.coco.json").read_text())["images"]) == 2
    assert cli(*words, "overlay,npz").code == 0
    overlays = sorted(path.name for path in (cli.folder / "out" / "overlays").iterdir())
    assert overlays == ["0000.jpg", "0001.jpg"]
    assert {path.name: path.read_bytes() for path in (cli.folder / "out" / "masks").iterdir()} == masks


def test_the_output_folder_belongs_to_one_run(cli: Cli, model: Path) -> None:
    images = write_images(cli.folder / "images", 1)
    with RunLock(cli.folder / "out"):
        ended = cli("label", images, "--out", "out", "--model", model)
    assert ended.code == 1
    assert f"process {os.getpid()}" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert cli("label", images, "--out", "out", "--model", model).code == 0


def test_quiet_says_nothing(cli: Cli, model: Path) -> None:
    images = write_images(cli.folder / "images", 1)
    ended = cli("label", images, "--out", "out", "--model", model, "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "foreign"])
def test_a_damaged_model_is_one_line_and_leaves_nothing(cli: Cli, model: Path, damage: str) -> None:
    images = write_images(cli.folder / "images", 1)
    data = model.read_bytes()
    broken = cli.folder / "broken.onnx"
    if damage == "cut":
        broken.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        middle = len(data) // 2
        broken.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif damage == "foreign":
        broken.write_bytes(b"not a model")
    ended = cli("label", images, "--out", "out", "--model", broken)
    assert ended.code == 1
    assert len(ended.err.splitlines()) == 1
    assert "broken.onnx" in ended.err
    assert not (cli.folder / "out").exists()


def test_the_output_may_lie_inside_the_input(cli: Cli, model: Path) -> None:
    images = write_images(cli.folder / "images", 2)
    words = ("label", images, "--out", images / "out", "--model", model, "--format", "png,overlay,report")
    assert cli(*words).code == 0
    assert "2 of them by an earlier run" in cli(*words).err
    assert sorted(manifest(images / "out")) == ["0000.png", "0001.png"]


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys; sys.argv = ['wsss-rt', 'label', '--help']\n"
        "from wsss_rt.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'numpy', 'cv2', 'PIL', 'onnxruntime', 'openvino', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "60"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for option in ("--ignore-band", "--max-errors", "--no-resume", "--dry-run"):
        assert option in done.stdout


def test_as_a_process_of_its_own(tmp_path: Path, model: Path) -> None:
    write_images(tmp_path / "images", 2)
    ended = run(tmp_path, "label", "images", "--out", "out", "--model", model, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["labelled"] == 2
    assert "\x1b" not in ended.err
