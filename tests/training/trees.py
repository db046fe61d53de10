"""Small trees in the real layouts of VOC, COCO, CUB and ILSVRC; images are noise of the tests' own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss_rt.classes import VOC_CLASSES

SYNSETS = ("n01440764", "n01443537", "n01484850")
_VOC = {"2007_000032": (1, 15), "2007_000033": (1,), "2007_000039": (20,)}
_COCO = {1: "person", 18: "dog", 90: "toothbrush"}


def save_image(path: Path, width: int = 16, height: int = 12) -> None:
    """An RGB JPEG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, format="JPEG")


def make_voc2012(root: Path) -> Path:
    """Three images with lists, masks, XML, and ``cls_labels.npy`` as numpy saves a dictionary."""
    for folder in ("ImageSets/Segmentation", "SegmentationClass", "Annotations"):
        (root / folder).mkdir(parents=True)
    vectors = {}
    for name, values in _VOC.items():
        save_image(root / "JPEGImages" / f"{name}.jpg")
        mask = np.zeros((12, 16), np.uint8)
        for place, value in enumerate(values):
            mask[2:8, 2 + 5 * place : 6 + 5 * place] = value
        mask[0] = 255
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
        named = "".join(f"<object><name>{VOC_CLASSES[value - 1]}</name></object>" for value in values)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{named}</annotation>")
        vectors[name] = np.isin(np.arange(1, 21), values).astype(np.float32)
    np.save(root / "cls_labels.npy", vectors, allow_pickle=True)  # type: ignore[arg-type]
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text("2007_000032\n2007_000039\n")
    (lists / "train.txt").write_text("2007_000032\n")
    (lists / "val.txt").write_text("2007_000033\n")
    return root


def coco_annotation(number: int, *, image: int, category: int, polygon: list[float]) -> dict[str, Any]:
    """One object with one polygon."""
    return {
        "id": number, "image_id": image, "category_id": category, "iscrowd": 0, "segmentation": [polygon],
        "area": 1.0, "bbox": [0, 0, 1, 1],
    }  # fmt: skip


def make_coco_tree(root: Path, *, categories: Mapping[int, str] = _COCO) -> Path:
    """train2014 with three images, one of them without annotations, and val2014 with one, with a crowd."""
    train = [
        coco_annotation(1, image=9, category=1, polygon=[0, 0, 8, 0, 8, 8, 0, 8]),
        coco_annotation(2, image=9, category=90, polygon=[2, 2, 6, 2, 6, 6, 2, 6]),
        coco_annotation(3, image=9, category=1, polygon=[9, 0, 12, 0, 12, 3, 9, 3]),
        coco_annotation(4, image=25, category=18, polygon=[1, 1, 9, 1, 9, 9, 1, 9]),
    ]
    # column by column, 12 pixels each: the lower half of every column
    crowd = {"size": [12, 16], "counts": [6] * 32}
    val = [
        coco_annotation(11, image=42, category=90, polygon=[2, 2, 6, 2, 6, 6, 2, 6]),
        coco_annotation(12, image=42, category=1, polygon=[0, 0, 8, 0, 8, 8, 0, 8]),
        coco_annotation(13, image=42, category=18, polygon=[]) | {"iscrowd": 1, "segmentation": crowd},
    ]
    (root / "annotations").mkdir(parents=True)
    for split, numbers, objects in (("train2014", (9, 25, 30), train), ("val2014", (42,), val)):
        images = []
        for number in numbers:
            name = f"COCO_{split}_{number:012d}.jpg"
            save_image(root / split / name)
            images.append({"id": number, "file_name": name, "width": 16, "height": 12})
        named = [{"id": number, "name": name, "supercategory": "x"} for number, name in categories.items()]
        content = {"info": {}, "images": images, "annotations": objects, "categories": named}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def make_cub_tree(root: Path) -> Path:
    """Two classes, five images: three of them for training."""
    classes = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    images = ("Black_0001", "Black_0002", "Laysan_0001", "Laysan_0002", "Laysan_0003")
    owners = (1, 1, 2, 2, 2)
    paths = [f"{classes[owner - 1]}/{image}.jpg" for owner, image in zip(owners, images, strict=True)]
    for path in paths:
        save_image(root / "images" / path)
    columns = {
        "images.txt": paths,
        "image_class_labels.txt": owners,
        "train_test_split.txt": (1, 0, 1, 1, 0),
        "bounding_boxes.txt": ("2.7 1.2 5.9 4.0", "3.0 2.0 6.0 5.0", *["1.0 1.0 8.0 8.0"] * 3),
        "classes.txt": classes,
    }
    for name, values in columns.items():
        lines = [f"{number} {value}\n" for number, value in enumerate(values, start=1)]
        (root / name).write_text("".join(lines))
    return root


def make_ilsvrc_tree(root: Path) -> Path:
    """Three synsets with an image each, and two validation images, one of them with two boxes."""
    train, val = [], []
    for label, synset in enumerate(SYNSETS):
        save_image(root / "train" / synset / f"{synset}_1.JPEG")
        train.append(f"{synset}/{synset}_1.JPEG {label}\n")
    for number, (label, boxes) in enumerate(((0, "1 2 10 11"), (2, "0 0 5 5 6 6 15 11")), start=1):
        name = f"{SYNSETS[label]}/ILSVRC2012_val_{number:08d}.JPEG"
        save_image(root / "val" / name)
        val.append(f"{name} {label} {boxes}\n")
    (root / "ILSVRC2012_list").mkdir()
    (root / "ILSVRC2012_list" / "train.txt").write_text("".join(train))
    (root / "ILSVRC2012_list" / "val_folder_new.txt").write_text("".join(val))
    return root
