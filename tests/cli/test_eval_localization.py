"""`wsss-rt eval --task localization` as a user meets it: numbers, errors that name the images, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.cli.eval_command import Command, command
from tests.samples import make_result
from wsss_rt.box_files import read_boxes
from wsss_rt.classes import SCENE_CLASSES
from wsss_rt.errors import WsssError
from wsss_rt.formats.npz import NpzWriter, read_maps
from wsss_rt.metrics import MaxBoxAccV2, stretch
from wsss_rt.metrics.token_refinement import TokenRefinementBoxAccuracy, scaled_boxes
from wsss_rt.tags import load_tags

__all__ = ["command"]

HEADER = "image,class,left,top,right,bottom\n"
# name, class, its rank, where its map is strong, the true box; pixels of 80x60 images
IMAGES = (
    ("a.jpg", "dots", 0, (10, 5, 40, 35), (10, 5, 40, 35)),
    ("deep/b.jpg", "rings", 3, (20, 20, 70, 50), (20, 20, 70, 50)),
    ("c.jpg", "dots", 0, (0, 0, 20, 20), (50, 30, 80, 60)),
)


def write_maps(out: Path, name: str, label: str, rank: int, box: Sequence[int]) -> Path:
    """What ``label --format npz`` writes of one image."""
    mask = np.zeros((60, 80), np.uint8)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = SCENE_CLASSES.index(label) + 1
    result = make_result(name, 0, mask=mask, tags=(label,))
    others = [other for other in SCENE_CLASSES if other != label]
    result.scores = dict(zip([*others[:rank], label, *others[rank:]], np.linspace(0.9, 0.1, 10), strict=True))
    return out / NpzWriter(out, result.classes).add(result)["maps"]


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Path]:
    """An output folder, and the boxes of its images."""
    out, lines = tmp_path / "out", HEADER
    for name, label, rank, strong, true in IMAGES:
        write_maps(out, name, label, rank, strong)
        lines += f"{name},{label},{','.join(map(str, true))}\n"
    (out / "run.json").write_text(json.dumps({"model": {"classes": SCENE_CLASSES}}))
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(lines)
    return out, boxes


TASK = ("--task", "localization")


class TestNumbers:
    def test_class_and_box_are_counted_apart(self, command: Command, run: tuple[Path, Path]) -> None:
        result = command.json(*run, *TASK)
        assert result["images"] == 3 and result["task"] == "localization"
        assert result["top_1_classification"] == pytest.approx(2 / 3)
        assert result["top_5_classification"] == 1
        assert result["top_1_localization"] == pytest.approx(1 / 3)
        assert result["top_5_localization"] == result["gt_known"] == pytest.approx(2 / 3)
        assert result["threshold_chosen_on_truth"] and 0 <= result["threshold"] < 1
        assert "variant" not in result

    def test_boxes_are_those_of_the_metric(self, command: Command, run: tuple[Path, Path]) -> None:
        measure = MaxBoxAccV2()
        for name, _, _, _, true in IMAGES:
            maps = read_maps(run[0] / "maps" / name.replace(".jpg", ".npz")).at_size(224, 224)
            scaled = np.array(true) * 224 / (80, 60, 80, 60)
            measure.update(stretch(maps[0]), [scaled])
        boxes = command.json(*run, *TASK)["max_box_acc_v2"]
        assert boxes["value"] == pytest.approx(measure.value()) == pytest.approx(2 / 3)
        for entry, limit, accuracy, threshold in zip(
            boxes["per_iou"], (0.3, 0.5, 0.7), measure.accuracies(), measure.best_thresholds(), strict=True
        ):
            assert entry == {"iou": limit, "accuracy": accuracy, "threshold": threshold}

    def test_the_variant_counts_beside_and_not_instead(
        self, command: Command, run: tuple[Path, Path]
    ) -> None:
        # only the second box of c fits: the variant does not know it
        with run[1].open("a") as file:
            file.write("c.jpg,dots,0,0,20,20\n")
        result = command.json(*run, *TASK, "--variant", "token-refinement")
        assert result["max_box_acc_v2"]["value"] == 1 and result["gt_known"] == 1
        variant = result["variant"]
        assert (variant["name"], variant["threshold"], variant["gt_known"]) == ("token-refinement", 0.1, 1)
        measure = TokenRefinementBoxAccuracy()
        for name, _, _, _, true in IMAGES:
            maps = read_maps(run[0] / "maps" / name.replace(".jpg", ".npz")).at_size(224, 224)
            measure.update(stretch(maps[0]), scaled_boxes([true], (60, 80), 224))
        assert [entry["accuracy"] for entry in variant["box_acc"]["per_iou"]] == measure.accuracies().tolist()
        assert variant["box_acc"]["value"] == pytest.approx(2 / 3)

    def test_a_given_threshold_is_used(self, command: Command, run: tuple[Path, Path]) -> None:
        words = (*TASK, "--box-threshold", 0.4, "--variant", "token-refinement")
        result = command.json(*run, *words)
        assert result["threshold"] == result["variant"]["threshold"] == 0.4
        assert not result["threshold_chosen_on_truth"]
        assert result["gt_known"] == pytest.approx(2 / 3)

    def test_tables_say_what_was_chosen(
        self, command: Command, run: tuple[Path, Path], tmp_path: Path
    ) -> None:
        target = tmp_path / "result.json"
        words = (*TASK, "--variant", "token-refinement", "--json", target)
        code, out, err = command(*run, *words)
        assert code == 0, err
        assert "3 images" in out and "chosen on this truth" in out and "MaxBoxAccV2" in out
        rows = [line.split() for line in out.splitlines()]
        assert ["GT-known", "66.67"] in rows and ["mean", "66.67"] in rows
        assert "as the token-refinement repository counts, at 0.100" in out
        assert json.loads(target.read_text())["images"] == 3
        assert "chosen on this truth" not in command(*run, *TASK, "--box-threshold", 0.4)[1]


class TestInputs:
    def test_the_folder_of_the_boxes_will_do(self, command: Command, run: tuple[Path, Path]) -> None:
        out, boxes = run
        assert command.json(out, boxes.parent, *TASK)["images"] == 3
        other = boxes.rename(boxes.parent / "other.csv")
        assert command.json(out, other.parent, *TASK, "--boxes", "other.csv")["images"] == 3
        assert command.json(out / "maps", other.parent, *TASK, "--boxes", other)["images"] == 3
        code, _, err = command(out, other, *TASK, "--boxes", "second.csv")
        assert code == 2 and "two files of boxes" in err

    def test_classes_can_be_given(self, command: Command, run: tuple[Path, Path]) -> None:
        (run[0] / "run.json").unlink()
        code, _, err = command(*run, *TASK)
        assert code == 2 and "--classes" in err
        assert command.json(*run, *TASK, "--classes", "scenes")["images"] == 3

    def test_a_list_restricts_the_images(
        self, command: Command, run: tuple[Path, Path], tmp_path: Path
    ) -> None:
        listed = tmp_path / "val.txt"
        listed.write_text("a\nb.jpg\n")
        result = command.json(*run, *TASK, "--list", listed)
        assert (result["images"], result["gt_known"], result["extra"]) == (2, 1, [])
        listed.write_text("nope\n")
        code, _, err = command(*run, *TASK, "--list", listed)
        assert code == 2 and "1 of 1 names of the list" in err and "nope" in err

    def test_the_boxes_serve_as_tags(self, run: tuple[Path, Path]) -> None:
        tags = load_tags(run[1], classes=SCENE_CLASSES)
        assert {image: tags.lookup(image) for image, *_ in IMAGES} == {
            image: (label,) for image, label, *_ in IMAGES
        }

    def test_other_columns_and_orders_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "b.csv"
        path.write_text("split,bottom,Right,top,left,class,image\nval,4,3,2.5,1,dots, ./x/a.jpg\n")
        (entry,) = read_boxes(path).items()
        assert entry[0] == "x/a.jpg" and entry[1].boxes.tolist() == [[1, 2.5, 3, 4]]


class TestErrors:
    def test_missing_predictions_are_named(self, command: Command, run: tuple[Path, Path]) -> None:
        (run[0] / "maps/deep/b.npz").unlink()
        code, out, err = command(*run, *TASK)
        assert (code, out) == (1, "")
        assert "1 of 3 images have no prediction" in err and "deep/b.jpg" in err and "--format npz" in err
        result = command.json(*run, *TASK, "--allow-missing")
        assert result["images"] == 2 and result["missing"] == ["deep/b.jpg"]

    def test_predictions_without_the_true_class_are_named(
        self, command: Command, run: tuple[Path, Path]
    ) -> None:
        write_maps(run[0], "a.jpg", "stripes", 0, (1, 1, 9, 9))
        code, out, err = command(*run, *TASK)
        assert (code, out) == (1, "")
        assert "a.jpg (dots)" in err and "--tags" in err

    def test_broken_predictions_are_named(self, command: Command, run: tuple[Path, Path]) -> None:
        path = run[0] / "maps/a.npz"
        content = dict(np.load(path))
        np.savez(path, **(content | {"scores": content["scores"][:7]}))
        code, _, err = command(*run, *TASK)
        assert code == 1 and "a.jpg (7 scores for 10 classes)" in err
        np.savez(path, **(content | {"scores": np.full(10, np.nan, np.float32)}))
        assert "a.jpg (not finite)" in command(*run, *TASK)[2]
        path.write_bytes(b"PK")
        code, _, err = command(*run, *TASK)
        assert code == 1 and "cannot read the maps" in err and "a.npz" in err

    @pytest.mark.parametrize(
        ("lines", "status", "said"),
        [
            ("a.jpg,dots,1,1,9,9\na.jpg,rings,1,1,9,9\n", 1, "a.jpg (dots, rings)"),
            ("a.jpg,dost,1,1,9,9\n", 2, "did you mean 'dots'"),
            ("a.jpg,dots,1,1,90,9\n", 1, "a.jpg (80x60)"),
            ("a.jpg,dots,9,1,1,9\n", 1, "row 2: 9,1,1,9 is no box"),
            ("a.jpg,dots,1,1,x,9\n", 1, "row 2: 1,1,x,9 are not four numbers"),
            ("a.jpg,dots,1,1,nan,9\n", 1, "is no box"),
            ("a.jpg,dots,1,1,9\n", 1, "row 2 has 5 columns"),
            (",dots,1,1,9,9\n", 1, "row 2 names no image"),
            ("", 1, "lists no box"),
        ],
    )
    def test_odd_boxes_are_named(
        self, command: Command, run: tuple[Path, Path], lines: str, status: int, said: str
    ) -> None:
        run[1].write_text(HEADER + lines)
        code, out, err = command(*run, *TASK)
        assert (code, out) == (status, "") and said in err

    def test_a_file_that_is_no_table_of_boxes(self, tmp_path: Path) -> None:
        path = tmp_path / "b.csv"
        for content, said in ((b"image,tags\na,b\n", "no column class, left"), (b"", "no column image")):
            path.write_bytes(content)
            with pytest.raises(WsssError, match=said):
                read_boxes(path)
        with pytest.raises(WsssError, match="no file of boxes"):
            read_boxes(tmp_path / "absent.csv")

    def test_images_that_differ_in_the_ending_alone(self, command: Command, run: tuple[Path, Path]) -> None:
        run[1].write_text(HEADER + "a.jpg,dots,1,1,9,9\na.png,dots,1,1,9,9\n")
        code, _, err = command(*run, *TASK)
        assert code == 2 and "cannot be told apart" in err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--only", "dots"], "--only does not go with --task localization"),
            (["--worst", 3], "--worst does not go"),
            (["--variant", "token-refinment"], "did you mean 'token-refinement'"),
            (["--box-threshold", 1], "not in [0, 1)"),
        ],
    )
    def test_wrong_usage_ends_with_2(
        self, command: Command, run: tuple[Path, Path], words: list[str], said: str
    ) -> None:
        code, out, err = command(*run, *TASK, *words)
        assert (code, out) == (2, "") and said in err
