"""Models of more than 254 classes: masks of 16 bits, from the first format to `eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from tests.cli.label_runs import Cli, manifest, tree, write_images
from tests.label_models import COLORS, write_color_model
from wsss_rt.classes import ClassSet
from wsss_rt.formats.npz import read_maps
from wsss_rt.formats.png import encode_mask, read_mask
from wsss_rt.labeler import Labeler
from wsss_rt.model_card import Recommended

# green has the mask value 255, which is a class here
RED, GREEN, BLUE = PLACES = (10, 254, 299)
NAMES = tuple(dict(zip(PLACES, COLORS, strict=True)).get(index, f"class {index}") for index in range(300))


def wide_card(count: int = 300) -> dict[str, Any]:
    thresholds = Recommended(background=0.4, tag_thresholds=(0.5,) * count, provenance="made for tests")
    return {"classes": NAMES[:count], "colors": (), "recommended": thresholds}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    return write_color_model(path, places=PLACES, **wide_card())


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path, monkeypatch, capsys)


@pytest.fixture
def out(cli: Cli, model: Path) -> Path:
    """A run over three images with every format, red and green given."""
    write_images(cli.folder / "images", 3)
    tags = "".join(f"{index:04d}.png,red;green\n" for index in range(3))
    (cli.folder / "tags.csv").write_text("image,tags\n" + tags)
    done = label(cli, model)
    assert done.code == 0, done.err
    return cli.folder / "out"


def label(cli: Cli, model: Path) -> Any:
    return cli(
        "label", "images", "--model", model, "--out", "out", "--tags", "tags.csv", "--quiet",
        "--format", "png,coco,overlay,report,npz", "--ignore-band", "0.4,0.45", "--backend", "onnxruntime",
    )  # fmt: skip


def test_every_format_holds_the_same_classes_and_a_second_run_finds_its_masks(
    out: Path, cli: Cli, model: Path
) -> None:
    masks = {path.name: np.array(Image.open(path)) for path in (out / "masks").iterdir()}
    assert len(masks) == 3
    found = {int(value) for mask in masks.values() for value in np.unique(mask)}
    assert found == {0, RED + 1, GREEN + 1, 65_535}
    for path in (out / "masks").iterdir():
        with Image.open(path) as image:
            assert image.mode.startswith("I")
        assert np.array_equal(read_mask(path, wide=True), masks[path.name])
    coco = json.loads((out / "annotations.coco.json").read_text())
    assert len(coco["categories"]) == 300 and coco["categories"][GREEN]["name"] == "green"
    assert "65535 is ignore" in coco["info"]["description"]
    names = {image["id"]: Path(image["mask"]).name for image in coco["images"]}
    assert {entry["category_id"] for entry in coco["annotations"]} == {RED + 1, GREEN + 1}
    for entry in coco["annotations"]:
        region = rle.decode(entry["segmentation"]).astype(bool)
        assert np.array_equal(region, masks[names[entry["image_id"]]] == entry["category_id"])
    stored = read_maps(out / "maps" / "0000.npz")
    assert stored.classes == (RED, GREEN) and stored.scores.shape == (300,)
    page = (out / "report.html").read_text()
    share = np.mean([mask == 65_535 for mask in masks.values()])
    assert f"<b>{share:.1%}</b>of pixels ignored" in page
    assert '<option value="255">green</option>' in page and '<option value="65535">ignore</option>' in page
    assert all((out / "overlays" / name).with_suffix(".jpg").is_file() for name in masks)
    # a thousand scores for every image would outweigh its mask
    scores = manifest(out)["0000.png"]["scores"]
    assert {"red", "green"} <= set(scores) and 20 <= len(scores) <= 22
    before = tree(out)
    done = label(cli, model)
    assert done.code == 0, done.err
    assert json.loads((out / "run.json").read_text())["session"]["resumed"] == 3
    assert {k: v for k, v in tree(out).items() if k != "run.json"} == {
        k: v for k, v in before.items() if k != "run.json"
    }


def test_eval_reads_them_on_both_sides(out: Path, cli: Cli) -> None:
    truth = cli.folder / "truth"
    truth.mkdir()
    wrong = 0
    for index, path in enumerate(sorted((out / "masks").iterdir())):
        mask = read_mask(path, wide=True)
        mask[mask == 65_535] = 0
        mask[:5] = 65_535
        if index == 0:
            free = mask == 0
            free[:5], free[10:] = False, False
            mask[free] = BLUE + 1
            wrong = int(free.sum())
        (truth / path.name).write_bytes(encode_mask(mask))
    (truth / "classes.txt").write_text("\n".join(NAMES) + "\n")
    done = cli("eval", out, truth, "--ignore-predicted", "--sweep", out, "--json", "-")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    rows = {row["name"]: row for row in result["classes"]}
    assert rows["blue"]["iou"] == 0.0 and rows["green"]["iou"] == 1.0
    assert rows["class 1"]["iou"] is None
    cells = result["confusion"]["cells"]
    assert (
        sum(count for true, _, count in cells if true == BLUE + 1) + rows["blue"]["ignored_pixels"] == wrong
    )
    assert any(true == predicted == GREEN + 1 for true, predicted, _ in cells)
    # what the ignore band took away is found again at its lower end
    assert result["sweep"]["miou"][40] == pytest.approx(result["miou"], abs=0.05)
    # a truth of 8 bits meets a wide prediction by name
    truth = cli.folder / "narrow"
    truth.mkdir()
    for path in (out / "masks").iterdir():
        mask, narrow = read_mask(path, wide=True), np.zeros((64, 96), np.uint8)
        narrow[mask == GREEN + 1], narrow[mask == RED + 1], narrow[mask == 65_535] = 1, 2, 255
        (truth / path.name).write_bytes(encode_mask(narrow))
    (truth / "classes.txt").write_text("green\nred\n")
    done = cli("eval", out, truth, "--json", "-")
    assert done.code == 0, done.err
    assert json.loads(done.out)["miou"] == 1.0


def test_254_classes_still_fit_8_bits(tmp_path: Path) -> None:
    path = write_color_model(tmp_path / "m.onnx", places=(0, 1, 253), **wide_card(254))
    image = np.full((64, 96, 3), 20, np.uint8)
    image[16:48, 16:64, 2] = 240
    with Labeler(path, backend="onnxruntime") as labeler:
        result = labeler.label(image)
        result.save(tmp_path / "mask.png")
    assert result.mask is not None and result.mask.dtype == np.uint8
    assert set(np.unique(result.mask)) == {0, 254} and len(result.record()["scores"]) == 254
    with Image.open(tmp_path / "mask.png") as stored:
        assert stored.mode == "P"


def test_predicted_tags_of_a_wide_model_on_an_image_in_memory(model: Path) -> None:
    image = np.full((64, 96, 3), 20, np.uint8)
    image[16:48, 16:64, 2] = 240
    with Labeler(model, backend="onnxruntime") as labeler:
        result = labeler.label(image)
    assert result.tags == ("blue",) and result.mask is not None and result.mask.dtype == np.uint16
    assert set(np.unique(result.mask)) == {0, BLUE + 1}
    assert len(result.scores) == 300
    assert result.overlay(image).shape[1] == 96


def test_an_8_bit_file_among_wide_masks_ignores_255(tmp_path: Path) -> None:
    narrow = np.array([[0, 1], [254, 255]], np.uint8)
    (tmp_path / "narrow.png").write_bytes(encode_mask(narrow))
    assert read_mask(tmp_path / "narrow.png", wide=True).tolist() == [[0, 1], [254, 65_535]]
    wide = np.array([[0, 255], [256, 65_535]], np.uint16)
    (tmp_path / "wide.png").write_bytes(encode_mask(wide))
    back = read_mask(tmp_path / "wide.png", wide=True)
    assert back.dtype == np.uint16 and np.array_equal(back, wide)
    assert ClassSet(NAMES).mask_names()[65_535] == "ignore"
