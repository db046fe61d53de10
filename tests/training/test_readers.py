"""Readers of the data sets' real layouts, on small trees; nothing here needs torch."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training.trees import (
    SYNSETS,
    coco_annotation,
    make_coco_tree,
    make_cub_tree,
    make_ilsvrc_tree,
    make_voc2012,
    save_image,
)
from wsss_rt.classes import COCO_CLASSES, VOC_CLASSES, ClassSet
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.label_vectors import read_label_vectors
from wsss_rt.tags import load_tags
from wsss_rt.training.config import DataSection, Layout
from wsss_rt.training.data.build import TrainingData, build_data, find_layout
from wsss_rt.training.data.coco import CocoMask, Outline
from wsss_rt.training.data.sources import FileSource, Item


def open_data(source: Path | str, **settings: Any) -> TrainingData:
    return build_data(DataSection(source=str(source), **settings), seed=0)


def items(source: Any) -> list[Item]:
    assert isinstance(source, FileSource)
    return source.items


def tags(data: TrainingData) -> dict[str, tuple[str, ...]]:
    return {item.name: tuple(data.classes.names[tag] for tag in item.tags) for item in items(data.train)}


def said(data: TrainingData) -> str:
    return "\n".join(data.messages)


def test_the_layout_is_what_the_tree_looks_like(tmp_path: Path) -> None:
    trees = {
        Layout.VOC: make_voc2012(tmp_path / "voc"),
        Layout.COCO: make_coco_tree(tmp_path / "coco"),
        Layout.CUB: make_cub_tree(tmp_path / "cub"),
        Layout.ILSVRC: make_ilsvrc_tree(tmp_path / "ilsvrc"),
    }
    assert {layout: find_layout(root) for layout, root in trees.items()} == {name: name for name in trees}
    (tmp_path / "plain").mkdir()
    assert find_layout(tmp_path / "plain") is Layout.FOLDER
    # the folder names of CUB are tags as well
    as_folder = open_data(trees[Layout.CUB], layout=Layout.FOLDER, tags="folders", val_images=0)
    assert as_folder.facts["data"] == "folder with tags" and len(items(as_folder.train)) == 5
    with pytest.raises(UsageError, match="is no VOC tree"):
        open_data(trees[Layout.CUB], layout=Layout.VOC)


# PASCAL VOC


def test_voc_takes_cls_labels_before_xml(tmp_path: Path) -> None:
    root = make_voc2012(tmp_path / "VOC2012")
    data = open_data(root)
    assert data.facts["tags"] == "cls_labels.npy" and data.classes.names == VOC_CLASSES
    assert data.facts["data"] == "VOC tree, split train_aug"
    assert tags(data) == {"2007_000032": ("aeroplane", "person"), "2007_000039": ("tvmonitor",)}
    assert data.validation is not None and data.validation.has_masks
    assert [item.name for item in items(data.validation)] == ["2007_000033"]
    from_xml = open_data(root, tags="voc")
    assert from_xml.facts["tags"] == "Annotations" and tags(from_xml) == tags(data)
    from_masks = open_data(root, tags="masks")
    assert from_masks.facts["tags"] == "masks" and tags(from_masks) == tags(data)


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "u1", "bool"])
def test_label_vectors_are_read_as_pickle_would(tmp_path: Path, protocol: int, dtype: str) -> None:
    vectors = {f"2007_{n:06d}": (np.arange(20) % (n + 2) == 0).astype(dtype) for n in range(4)}
    path = tmp_path / "cls_labels.npy"
    save_vectors(path, vectors, protocol)
    found = read_label_vectors(path)
    assert list(found) == list(vectors)
    assert all(np.array_equal(found[name], vector.astype(np.float32)) for name, vector in vectors.items())
    assert all(vector.dtype == np.float32 for vector in found.values())


def save_vectors(path: Path, vectors: Any, protocol: int) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        array = np.empty((), object)
        array[()] = vectors
        pickle.dump(array, file, protocol=protocol)


def test_label_vectors_as_python_2_wrote_them(tmp_path: Path) -> None:
    # text without encoding for names and bytes alike, as cPickle did with protocol 2
    def word(text: str) -> bytes:
        return b"U" + bytes([len(text)]) + text.encode("latin-1")

    float32 = b"cnumpy\ndtype\n" + word("f4") + b"K\x00K\x01\x87R(K\x03" + word("<") + b"NNNJ\xff\xff\xff\xff"
    float32 += b"J\xff\xff\xff\xffK\x00tb"
    objects = b"cnumpy\ndtype\n" + word("O8") + b"K\x00K\x01\x87R(K\x03" + word("|") + b"NNNJ\xff\xff\xff\xff"
    objects += b"J\xff\xff\xff\xffK\x3ftb"
    new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + word("b") + b"\x87R"
    ones = np.array([1, 0], "<f4").tobytes().decode("latin-1")
    vector = new + b"(K\x01K\x02\x85" + float32 + b"\x89" + word(ones) + b"tb"
    content = b"}" + word("2007_000032") + vector + b"s"
    path = tmp_path / "cls_labels.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(b"\x80\x02" + new + b"(K\x01)" + objects + b"\x89]" + content + b"atb.")
    assert {name: vector.tolist() for name, vector in read_label_vectors(path).items()} == {
        "2007_000032": [1.0, 0.0]
    }


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('the payload ran')",)


@pytest.mark.parametrize("protocol", range(5))
def test_label_vectors_never_run_anything(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "cls_labels.npy"
    save_vectors(path, {"2007_000032": Evil()}, protocol)
    with pytest.raises(
        WsssError, match=r"refusing to read .*the name (builtins|__builtin__)\.exec"
    ) as caught:
        read_label_vectors(path)
    assert caught.value.code == "unsafe_tags" and "save a CSV" in caught.value.fix


def test_damaged_label_vectors_end_with_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cls_labels.npy"
    save_vectors(path, {f"n{n}": np.eye(20, dtype=np.float32)[n] for n in range(3)}, 3)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(WsssError):
            read_label_vectors(path)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(80, len(whole))] = int(rng.integers(256))
        path.write_bytes(bytes(damaged))
        try:
            read_label_vectors(path)
        except WsssError:
            continue


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"a": np.zeros(3), "b": np.zeros(4)}, "differ in length: 3 for a, 4 for b"),
        ({"a": np.full(3, 0.5)}, "the labels of 'a' are not all 0 or 1"),
        ({"a": np.zeros((3, 2))}, "no vector of numbers"),
        ({"a": [0, 1]}, "no vector of numbers"),
        ({7: np.zeros(3)}, "a int stands where a str belongs"),
        ({}, "no dictionary of image names"),
        ({"a": np.zeros(3)}, "its vectors have 3 numbers and no names"),
    ],
)
def test_what_is_wrong_with_label_vectors_is_said(tmp_path: Path, content: Any, why: str) -> None:
    path = tmp_path / "cls_labels.npy"
    np.save(path, content, allow_pickle=True)
    with pytest.raises(WsssError, match=why):
        load_tags(path)


def test_vectors_stand_for_the_classes_in_order(tmp_path: Path) -> None:
    path = tmp_path / "cls_labels.npy"
    np.save(path, {"x": np.array([0.0, 1.0, 1.0])}, allow_pickle=True)  # type: ignore[arg-type]
    assert load_tags(path, classes=("zebra", "ant", "bee")).lookup("x.jpg") == ("ant", "bee")
    np.save(path, {"x": np.eye(80)[79]}, allow_pickle=True)  # type: ignore[arg-type]
    assert load_tags(path).lookup("x.jpg") == ("toothbrush",)
    # whatever the order of a model's classes, 20 numbers are VOC's in alphabetical order
    np.save(path, {"x": np.eye(20)[0]}, allow_pickle=True)  # type: ignore[arg-type]
    assert load_tags(path, classes=VOC_CLASSES[::-1]).lookup("x.jpg") == ("aeroplane",)


# MS COCO


def test_coco_tags_and_masks(tmp_path: Path) -> None:
    data = open_data(make_coco_tree(tmp_path / "coco"))
    # ids 1, 18 and 90: contiguous in the model and in the masks
    assert data.classes.names == ("person", "dog", "toothbrush")
    assert tags(data) == {
        "COCO_train2014_000000000009.jpg": ("person", "toothbrush"),
        "COCO_train2014_000000000025.jpg": ("dog",),
    }
    assert "1 listed without a tag, left out: COCO_train2014_000000000030.jpg" in said(data)
    assert data.facts["tags"] == "instances_train2014.json"
    assert data.validation is not None and data.validation.has_masks
    sample = data.validation.load(0, mask=True)
    assert sample.mask is not None and sample.mask.dtype == np.uint8 and sample.mask.shape == (12, 16)
    expected = np.zeros((12, 16), np.uint8)
    expected[6:12] = 255
    expected[0:8, 0:8] = 1
    expected[2:6, 2:6] = 3
    assert np.array_equal(sample.mask, expected)
    # the crowd's class is a tag though it is ignored in the mask
    assert sample.tags == (0, 1, 2)


def test_the_real_ids_of_coco_make_its_80_classes(tmp_path: Path) -> None:
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    ids = [number for number in range(1, 91) if number not in gaps]
    categories = dict(zip(ids, COCO_CLASSES, strict=True))
    root = make_coco_tree(tmp_path / "coco", categories=dict(reversed(categories.items())))
    data = open_data(root)
    assert data.classes.names == COCO_CLASSES
    assert open_data(root, classes="coco").classes == data.classes
    assert data.validation is not None
    mask = data.validation.load(0, mask=True).mask
    assert mask is not None and set(np.unique(mask)) == {0, 1, 80, 255}


def test_coco_findings_are_counted_and_named(tmp_path: Path) -> None:
    root = make_coco_tree(tmp_path / "coco")
    path = root / "annotations" / "instances_train2014.json"
    raw = json.loads(path.read_text())
    raw["annotations"].append(coco_annotation(77, image=4711, category=1, polygon=[0, 0, 4, 0, 4, 4]))
    path.write_text(json.dumps(raw))
    (root / "train2014" / "COCO_train2014_000000000025.jpg").unlink()
    data = open_data(root)
    assert "warning: 1 annotations of images that are not listed, left out: 77 (image 4711)" in said(data)
    assert "1 listed in the tags, but missing: COCO_train2014_000000000025.jpg" in said(data)
    raw["annotations"].append(coco_annotation(78, image=9, category=5, polygon=[0, 0, 4, 0, 4, 4]))
    path.write_text(json.dumps(raw))
    with pytest.raises(WsssError, match=r"1 annotations of a category that is not listed: 78 \(category 5\)"):
        open_data(root)
    with pytest.raises(UsageError, match=r"no split 'train2015'.*did you mean 'train2014'"):
        open_data(root, split="train2015")
    with pytest.raises(UsageError, match="COCO brings its own tags"):
        open_data(root, tags="x.csv")
    path.write_text('{"images": []}')
    with pytest.raises(WsssError, match="'categories' is missing"):
        open_data(root)


def test_coco_masks_must_fit_their_images(tmp_path: Path) -> None:
    root = make_coco_tree(tmp_path / "coco")
    save_image(root / "val2014" / "COCO_val2014_000000000042.jpg", 16, 13)
    with pytest.raises(WsssError, match=r"COCO_val2014_000000000042\.jpg is 16x12.* is 16x13"):
        open_data(root)


def test_small_objects_stay_visible_in_front_of_large_ones() -> None:
    large = Outline(5, 1, [[0, 0, 8, 0, 8, 8, 0, 8]])
    small = Outline(2, 2, [[2, 2, 5, 2, 5, 5, 2, 5]])
    for objects in ((large, small), (small, large)):
        mask = CocoMask("x.jpg", 8, 8, objects=objects).draw()
        assert (mask == 2).sum() == 9 and (mask == 1).sum() == 55
    twin = Outline(9, 3, large.segmentation)
    assert (CocoMask("x.jpg", 8, 8, objects=(twin, large)).draw() == 3).all()


@pytest.mark.parametrize("packed", [False, True])
def test_run_lengths_plain_and_packed(packed: bool) -> None:
    from pycocotools import mask as run_lengths

    region = np.random.default_rng(3).random((37, 53)) < 0.3
    region[:, 20:30] = True
    segmentation = run_lengths.encode(np.asfortranarray(region.astype(np.uint8)))
    segmentation["counts"] = segmentation["counts"].decode()
    if not packed:
        flat = np.concatenate([[False], region.ravel(order="F")])
        changes = np.flatnonzero(np.diff(flat.astype(int)))
        segmentation["counts"] = np.diff([0, *changes, region.size]).tolist()
    mask = CocoMask("x.jpg", 37, 53, objects=(Outline(1, 4, segmentation),)).draw()
    assert np.array_equal(mask == 4, region)


@pytest.mark.parametrize(
    ("segmentation", "why"),
    [
        ([[0, 0, 4, 0, 4]], "a polygon has 5 numbers"),
        ([[0, 0, 1e9, 0, 4, 4]], "lies outside the image"),
        ([[0, 0, float("nan"), 0, 4, 4]], "lies outside the image"),
        ({"size": [8, 8], "counts": [10, 10]}, "do not make 64 pixels"),
        ({"size": [8, 8], "counts": [100, -36]}, "do not make 64 pixels"),
        ({"size": [9, 8], "counts": [72]}, r"runs are for \[9, 8\], the image has \[8, 8\]"),
        ({"size": [8, 8], "counts": "~~~"}, "packed runs"),
        ({"counts": [64]}, "size"),
        (None, "NoneType"),
    ],
)
def test_annotations_that_cannot_be_drawn_are_named(segmentation: Any, why: str) -> None:
    with pytest.raises(WsssError, match=rf"cannot draw the annotation 31 of x\.jpg.*{why}"):
        CocoMask("x.jpg", 8, 8, objects=(Outline(31, 1, segmentation),)).draw()


def test_a_sliver_encloses_nothing() -> None:
    assert not CocoMask("x.jpg", 8, 8, objects=(Outline(1, 1, [[0, 0, 7, 7]]),)).draw().any()


# CUB-200-2011


def test_cub_joins_its_lists_by_number(tmp_path: Path) -> None:
    root = make_cub_tree(tmp_path / "CUB_200_2011")
    data = open_data(root)
    assert data.classes == ClassSet(("001.Black_footed_Albatross", "002.Laysan_Albatross"))
    albatross, laysan = data.classes.names
    assert tags(data) == {
        f"{albatross}/Black_0001.jpg": (albatross,),
        f"{laysan}/Laysan_0001.jpg": (laysan,),
        f"{laysan}/Laysan_0002.jpg": (laysan,),
    }
    # x, y, width, height 2.7, 1.2, 5.9, 4.0: cut first, then added; right and bottom are exclusive
    assert items(data.train)[0].boxes == ((2, 1, 7, 5),)
    assert data.validation is not None and not data.validation.has_masks
    sample = data.validation.load(0)
    assert sample.boxes is not None and sample.boxes.tolist() == [[3, 2, 9, 7]]
    assert sample.boxes.dtype == np.int64
    assert [item.name for item in items(open_data(root, split="test").train)] == [
        item.name for item in items(data.validation)
    ]
    # lines in another order mean the same: it is the number that joins
    labels = root / "image_class_labels.txt"
    labels.write_text("\n".join(reversed(labels.read_text().splitlines())))
    assert tags(open_data(root)) == tags(data)


def test_cub_findings_are_counted_and_named(tmp_path: Path) -> None:
    root = make_cub_tree(tmp_path / "cub")
    with (root / "bounding_boxes.txt").open("a") as file:
        file.write("99 1.0 1.0 2.0 2.0\n")
    splits = root / "train_test_split.txt"
    splits.write_text(splits.read_text().replace("3 1\n", ""))
    (root / "images" / "001.Black_footed_Albatross" / "Black_0001.jpg").unlink()
    data = open_data(root)
    text = said(data)
    assert "warning: 1 boxes of images that images.txt does not list, left out: 99" in text
    assert (
        "1 images that train_test_split.txt does not list, left out: 002.Laysan_Albatross/Laysan_0001" in text
    )
    assert "1 listed in the tags, but missing: 001.Black_footed_Albatross/Black_0001.jpg" in text
    (root / "bounding_boxes.txt").unlink()
    assert "warning: no bounding_boxes.txt" in said(open_data(root))
    (root / "image_class_labels.txt").write_text("1 1\n2 3\n")
    with pytest.raises(WsssError, match=r"1 labels that classes\.txt does not list: 3 \(image 2\)"):
        open_data(root)
    (root / "image_class_labels.txt").write_text("1 1\n2\n")
    with pytest.raises(WsssError, match=r"line 2 of .*image_class_labels\.txt"):
        open_data(root)
    with pytest.raises(UsageError, match=r"no split 'tset'.*did you mean 'test'"):
        open_data(root, split="tset")


# ILSVRC


def test_ilsvrc_lists(tmp_path: Path) -> None:
    data = open_data(make_ilsvrc_tree(tmp_path / "ilsvrc"))
    assert data.classes.names == SYNSETS
    assert tags(data) == {f"{synset}/{synset}_1.JPEG": (synset,) for synset in SYNSETS}
    assert data.validation is not None and data.validation.count == 2
    first, second = (data.validation.load(index) for index in range(2))
    assert first.boxes is not None and first.boxes.tolist() == [[1, 2, 10, 11]]
    assert second.boxes is not None and second.boxes.tolist() == [[0, 0, 5, 5], [6, 6, 15, 11]]
    assert second.tags == (2,)


def test_ilsvrc_without_a_training_list_takes_the_folders(tmp_path: Path) -> None:
    root = make_ilsvrc_tree(tmp_path / "ilsvrc")
    expected = tags(open_data(root))
    (root / "ILSVRC2012_list" / "train.txt").unlink()
    data = open_data(root)
    assert tags(data) == expected and data.facts["tags"] == "train"
    (root / "ILSVRC2012_list" / "val_folder_new.txt").unlink()
    assert open_data(root).validation is None
    with pytest.raises(WsssError, match="no list of its val images"):
        open_data(root, val_split="val")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("n01440764/a.JPEG", "expected are 2 words"),
        ("n01440764/a.JPEG 0 1 2 3", "3 numbers make no boxes"),
        ("n01440764/a.JPEG 0 1.5 2 3 4", "whole numbers"),
        ("n01440764/a.JPEG -1", "the label is -1"),
        ("../a.JPEG 0", "leads out of the image folder"),
        ("n01440764/ILSVRC2012_val_00000001.JPEG 0 1 2 3 4", "a second time"),
        ("n01440764/a.JPEG 1 1 2 3 4", "which is n01443537 elsewhere"),
        ("n01440764/a.JPEG 5 1 2 3 4", "2 of 6 labels have no synset, e.g. 3"),
    ],
)
def test_wrong_lines_of_ilsvrc_are_named(tmp_path: Path, line: str, why: str) -> None:
    root = make_ilsvrc_tree(tmp_path / "ilsvrc")
    with (root / "ILSVRC2012_list" / "val_folder_new.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(WsssError, match=why):
        open_data(root)


def test_a_thousand_classes_need_wide_masks(tmp_path: Path) -> None:
    root = tmp_path / "many"
    synsets = [f"n{number:08d}" for number in range(1000)]
    lines = []
    for label, synset in enumerate(synsets):
        lines.append(f"{synset}/x.JPEG {label}")
    (root / "ILSVRC2012_list").mkdir(parents=True)
    (root / "ILSVRC2012_list" / "train.txt").write_text("\n".join(lines))
    for synset in synsets[:600]:
        (root / "train" / synset).mkdir(parents=True)
        Image.new("L", (4, 4)).save(root / "train" / synset / "x.JPEG")
    data = open_data(root, val_images=0, check=False)
    assert len(data.classes) == 1000 and data.facts["images"]["missing"] == 400
    assert "400 classes without an image" in said(data)
    assert data.classes.wide and data.classes.ignore == 65535 and not ClassSet(synsets[:254]).wide
    with pytest.raises(UsageError, match="do not fit a 16-bit mask"):
        ClassSet(tuple(map(str, range(65_535))))
