"""`wsss-rt eval` as a user meets it: numbers, errors that name the images, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.cli.eval_command import Command, command
from tests.samples import make_result
from wsss_rt.formats import open_writers
from wsss_rt.formats.png import encode_mask
from wsss_rt.io.manifest import Manifest
from wsss_rt.metrics import ConfusionMatrix, threshold_sweep

__all__ = ["command"]

NAMES = ("a", "deep/b", "c")


def masks(seed: int, names: tuple[str, ...] = NAMES) -> dict[str, NDArray[np.uint8]]:
    """Random masks of three classes and background, of several sizes, with some ignored pixels."""
    rng = np.random.default_rng(seed)
    made = {}
    for index, name in enumerate(names):
        mask = rng.integers(0, 4, (20 + index, 30)).astype(np.uint8)
        mask[:2, :5] = 255
        made[name] = mask
    return made


def write(folder: Path, content: dict[str, NDArray[np.uint8]]) -> Path:
    for name, mask in content.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_mask(mask))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "pred", masks(1)), write(tmp_path / "gt", masks(2))


def expected(prediction: dict[str, Any], truth: dict[str, Any]) -> ConfusionMatrix:
    matrix = ConfusionMatrix(4)
    for name, mask in truth.items():
        matrix.update(prediction[name], mask)
    return matrix


class TestNumbers:
    def test_they_are_those_of_the_matrix_over_all_pixels(
        self, command: Command, folders: tuple[Path, Path]
    ) -> None:
        result = command.json(*folders, "--classes", "x,y,z")
        matrix = expected(masks(1), masks(2))
        assert result["miou"] == pytest.approx(matrix.miou())
        assert result["pixel_accuracy"] == pytest.approx(matrix.pixel_accuracy())
        assert [entry["name"] for entry in result["classes"]] == ["background", "x", "y", "z"]
        assert [entry["iou"] for entry in result["classes"]] == pytest.approx(matrix.iou().tolist())
        assert result["confusion"]["truth_by_prediction"] == matrix.counts.tolist()
        assert result["miou_foreground"] == pytest.approx(matrix.iou()[1:].mean())

    def test_a_perfect_prediction_is_100_percent(self, command: Command, folders: tuple[Path, Path]) -> None:
        code, out, _ = command(folders[1], folders[1], "--classes", "x,y,z")
        assert code == 0
        rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
        for name in ("background", "x", "y", "z"):
            assert rows[name][:3] == ["100.00", "100.00", "100.00"]
        assert "mIoU             100.00 %" in out

    def test_only_changes_the_mean_and_not_the_classes(
        self, command: Command, folders: tuple[Path, Path]
    ) -> None:
        whole = command.json(*folders, "--classes", "x,y,z")
        part = command.json(*folders, "--classes", "x,y,z", "--only", "z,x")
        values = {entry["name"]: entry["iou"] for entry in whole["classes"]}
        assert {entry["name"]: entry["iou"] for entry in part["classes"]} == {
            name: values[name] for name in ("x", "z")
        }
        assert part["miou"] == pytest.approx((values["x"] + values["z"]) / 2)

    def test_predicted_ignore_counts_as_wrong_unless_left_out(self, command: Command, tmp_path: Path) -> None:
        truth = np.ones((10, 10), np.uint8)
        half = truth.copy()
        half[:5] = 255
        gt, pred = write(tmp_path / "gt", {"a": truth}), write(tmp_path / "pred", {"a": half})
        strict = command.json(pred, gt, "--classes", "x,y")
        assert (strict["pixel_accuracy"], strict["coverage"]) == (0.5, 0.5)
        assert strict["classes"][1]["iou"] == 0.5
        lenient = command.json(pred, gt, "--classes", "x,y", "--ignore-predicted")
        assert (lenient["pixel_accuracy"], lenient["coverage"]) == (1.0, 0.5)
        _, out, _ = command(pred, gt, "--classes", "x,y")
        assert "coverage" in out and "counted as wrong" in out

    def test_the_worst_images_are_the_worst(self, command: Command, tmp_path: Path) -> None:
        truth = masks(2)
        prediction = dict(truth) | {"deep/b": np.zeros_like(truth["deep/b"])}
        pred, gt = write(tmp_path / "p", prediction), write(tmp_path / "g", truth)
        _, out, _ = command(pred, gt, "--classes", "x,y,z", "--worst", 1)
        assert out.rstrip().splitlines()[-1].startswith("deep/b ")
        scores = {entry["image"]: entry["miou"] for entry in command.json(pred, gt)["per_image"]}
        assert scores["a"] == 1.0 and scores["deep/b"] < 0.1

    def test_without_class_names_the_numbers_are_shown(
        self, command: Command, folders: tuple[Path, Path]
    ) -> None:
        _, out, _ = command(*folders)
        assert "class 3" in out and "--classes" in out


class TestErrors:
    def test_missing_predictions_are_named_and_nothing_is_computed(
        self, command: Command, folders: tuple[Path, Path]
    ) -> None:
        (folders[0] / "deep/b.png").unlink()
        code, out, err = command(*folders)
        assert code == 1 and out == ""
        assert "1 of 3 images have no prediction" in err and "deep/b" in err and "--allow-missing" in err

    def test_many_missing_predictions_are_counted_after_the_tenth(
        self, command: Command, tmp_path: Path
    ) -> None:
        names = tuple(f"{index:02d}" for index in range(14))
        gt = write(tmp_path / "gt", masks(2, names))
        pred = write(tmp_path / "pred", masks(1, names[:2]))
        _, _, err = command(pred, gt)
        assert "02, 03" in err and "11 and 2 more" in err

    def test_allowed_missing_images_are_left_out_and_said(
        self, command: Command, folders: tuple[Path, Path]
    ) -> None:
        (folders[0] / "deep/b.png").unlink()
        result = command.json(*folders, "--classes", "x,y,z", "--allow-missing")
        assert result["missing"] == ["deep/b"] and result["images"] == 2
        truth = {name: mask for name, mask in masks(2).items() if name != "deep/b"}
        assert result["miou"] == pytest.approx(expected(masks(1), truth).miou())
        assert "1 without prediction, left out: deep/b" in command(*folders, "--allow-missing")[1]

    def test_odd_sizes_are_all_named(self, command: Command, folders: tuple[Path, Path]) -> None:
        small = np.zeros((5, 6), np.uint8)
        write(folders[0], {"a": small, "c": small})
        code, out, err = command(*folders)
        assert code == 1 and out == ""
        assert "2 predictions differ in size" in err
        assert "a (6x5 against 30x20)" in err and "c (6x5 against 30x22)" in err

    def test_values_that_are_no_class_are_named(self, command: Command, folders: tuple[Path, Path]) -> None:
        code, out, err = command(*folders, "--classes", "x,y")
        assert code == 1 and out == ""
        assert "hold values that are no class" in err and "a (3" in err and "0 to 2" in err

    def test_a_truth_in_colours_is_refused(self, command: Command, folders: tuple[Path, Path]) -> None:
        Image.new("RGB", (30, 20), (128, 0, 0)).save(folders[1] / "a.png")
        code, _, err = command(*folders)
        assert code == 1 and "a.png is a picture in colours" in err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--only", "backgruond", "--classes", "x,y,z"], "did you mean 'background'"),
            (["--classes", "vok"], "no class set or file"),
            (["--list", "absent.txt"], "cannot read the list"),
            (["--sweep", "absent"], "no folder absent"),
            (["--official-sweep"], "needs maps"),
            (["--task", "localisation"], "did you mean 'localization'"),
            (["--box-threshold", "0.1"], "--box-threshold does not go with --task segmentation"),
        ],
    )
    def test_wrong_usage_ends_with_2(
        self, command: Command, folders: tuple[Path, Path], words: list[str], said: str
    ) -> None:
        code, out, err = command(*folders, *words)
        assert (code, out) == (2, "") and said in err

    def test_folders_without_masks_say_so(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "no PNG masks" in command(tmp_path / "empty", tmp_path / "empty")[2]
        assert "no folder" in command(tmp_path / "none", tmp_path / "empty")[2]


class TestMatching:
    def test_names_match_where_trees_differ(self, command: Command, tmp_path: Path) -> None:
        truth, prediction = masks(2), masks(1)
        gt = write(tmp_path / "gt", {"a": truth["a"], "b": truth["deep/b"], "c": truth["c"]})
        pred = write(
            tmp_path / "pred", {"x/a": prediction["a"], "b.jpg": prediction["deep/b"], "c": prediction["c"]}
        )
        result = command.json(pred, gt, "--classes", "x,y,z")
        assert result["miou"] == pytest.approx(expected(prediction, truth).miou())
        assert result["extra"] == []

    def test_a_name_that_fits_twice_is_an_error(self, command: Command, tmp_path: Path) -> None:
        mask = masks(1)["a"]
        pred = write(tmp_path / "pred", {"x/a": mask, "y/a": mask})
        code, _, err = command(pred, write(tmp_path / "gt", {"a": mask}))
        assert code == 2 and "x/a, y/a" in err

    def test_one_prediction_never_serves_two_truths(self, command: Command, tmp_path: Path) -> None:
        mask = masks(1)["a"]
        gt = write(tmp_path / "gt", {"x/a": mask, "y/a": mask})
        code, _, err = command(write(tmp_path / "pred", {"x/a": mask}), gt)
        assert code == 1 and "1 of 2 images have no prediction" in err and "y/a" in err
        code, _, err = command(write(tmp_path / "flat", {"a": mask}), gt)
        assert code == 2 and "x/a and y/a" in err

    def test_extra_predictions_are_reported(self, command: Command, folders: tuple[Path, Path]) -> None:
        write(folders[0], {"zz": masks(1)["a"]})
        _, out, _ = command(*folders)
        assert "1 without truth: zz" in out

    def test_a_list_restricts_the_images(
        self, command: Command, folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        listed = tmp_path / "val.txt"
        listed.write_text("a\nb\n\n")
        result = command.json(*folders, "--classes", "x,y,z", "--list", listed)
        truth = {name: mask for name, mask in masks(2).items() if name != "c"}
        assert result["miou"] == pytest.approx(expected(masks(1), truth).miou())
        assert result["images"] == 2 and result["extra"] == []
        listed.write_text("a\nnope\n")
        code, _, err = command(*folders, "--list", listed)
        assert code == 2 and "1 of 2 names of the list" in err and "nope" in err

    def test_names_that_are_no_utf8(self, command: Command, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9")
        mask = masks(1)["a"]
        result = command.json(write(tmp_path / "p", {name: mask}), write(tmp_path / "g", {name: mask}))
        assert result["per_image"][0]["image"] == "caf\\xe9" and result["miou"] == 1.0


class TestClassNames:
    def out_folder(self, tmp_path: Path, names: list[str]) -> Path:
        out = tmp_path / "out"
        write(out / "masks", masks(1))
        (out / "run.json").write_text(json.dumps({"model": {"classes": names}}))
        return out

    def test_an_output_folder_brings_its_own(
        self, command: Command, folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        out = self.out_folder(tmp_path, ["cat", "dog", "cow"])
        for given in (out, out / "masks"):
            result = command.json(given, folders[1])
            assert [entry["name"] for entry in result["classes"]] == ["background", "cat", "dog", "cow"]

    def test_other_numbers_for_the_same_names_are_matched_by_name(
        self, command: Command, folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        out = self.out_folder(tmp_path, ["dog", "cow", "cat"])
        result = command.json(out, folders[1], "--classes", "cat,dog,cow")
        table = np.array([0, 2, 3, 1, *range(4, 256)], np.uint8)
        renumbered = {name: table[mask] for name, mask in masks(1).items()}
        assert result["miou"] == pytest.approx(expected(renumbered, masks(2)).miou())
        assert "matched by name" in result["notes"][0]

    def test_no_common_name_is_an_error(
        self, command: Command, folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        code, _, err = command(self.out_folder(tmp_path, ["p", "q", "r"]), folders[1], "--classes", "x,y,z")
        assert code == 2 and "share no class name" in err

    def test_a_voc_tree_is_a_truth(self, command: Command, tmp_path: Path) -> None:
        write(tmp_path / "voc" / "SegmentationClass", masks(2))
        (tmp_path / "voc" / "classes.txt").write_text("x\ny\nz\n")
        result = command.json(write(tmp_path / "pred", masks(1)), tmp_path / "voc")
        assert result["miou"] == pytest.approx(expected(masks(1), masks(2)).miou())
        assert result["classes"][1]["name"] == "x"


class TestSweep:
    def test_stored_maps_are_judged_at_every_threshold(self, command: Command, tmp_path: Path) -> None:
        results = [make_result(f"{index}.jpg", index) for index in range(3)]
        out, rng = tmp_path / "out", np.random.default_rng(0)
        writers = open_writers(["npz"], out, results[0].classes, context={})
        items = []
        for result in results:
            assert result.maps is not None and result.mask is not None
            noise = rng.random(result.maps.shape, np.float32) * 0.5
            result.maps = np.clip(result.maps * 0.6 + noise, 0, 1).astype(np.float16).astype(np.float32)
            indices = [result.classes.index(tag) for tag in result.tags]
            items.append((result.maps, indices, result.mask))
            with Manifest(out / "manifest.jsonl") as manifest:
                record = result.record()
                for writer in writers:
                    record.update(writer.add(result))
                manifest.append(record)
        gt = write(tmp_path / "gt", {f"{index}": item[2] for index, item in enumerate(items)})
        for folder in (out, out / "maps"):
            words = (out, gt, "--classes", "scenes", "--sweep", folder, "--official-sweep")
            result_json = command.json(*words)["sweep"]
            truth = threshold_sweep(items, 11, thresholds=np.arange(100) / 100)
            assert result_json["miou"] == pytest.approx(truth.miou.tolist(), abs=1e-12)
            assert result_json["best"]["threshold"] == truth.best()[0]
            official = threshold_sweep(items, 11, absent="zero").best_greedy()
            assert result_json["official_greedy"]["threshold"] == official[0]
            assert result_json["official_greedy"]["miou"] == pytest.approx(official[1], abs=1e-12)
        _, text, _ = command(out, gt, "--classes", "scenes", "--sweep", out)
        assert "chosen on this truth" in text and "official search" not in text
        _, text, _ = command(*words)
        assert "official search" in text

    def test_missing_maps_are_named(
        self, command: Command, folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        (tmp_path / "maps").mkdir()
        code, out, err = command(*folders, "--sweep", tmp_path / "maps")
        assert code == 1 and "3 of 3 images have no maps" in err and "--format npz" in err


def test_the_installed_command_prints_plain_text_into_a_pipe(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    target = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "wsss_rt", "eval", *map(str, folders), "--json", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and f"wrote {target}" in done.stdout
    assert json.loads(target.read_text())["images"] == 3
