"""Small folders and configurations that the training tests share; images come from the scene generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from wsss_rt.classes import SCENE_CLASSES, voc_palette
from wsss_rt.scenes import Scene, render_scene
from wsss_rt.training.config import TrainConfig, build_config

SIDE = 64


def scenes(count: int) -> list[Scene]:
    """The first scenes of a seed of the tests' own."""
    return [render_scene(4711, index, height=SIDE, width=SIDE) for index in range(count)]


def tag_names(scene: Scene) -> str:
    """Tags as a CSV cell."""
    return ";".join(SCENE_CLASSES[tag] for tag in scene.tags)


def make_folder(root: Path, count: int) -> Path:
    """Images 00.jpg, 01.jpg … with ``labels.csv``."""
    root.mkdir(parents=True)
    lines = ["image,tags"]
    for index, scene in enumerate(scenes(count)):
        Image.fromarray(scene.image).save(root / f"{index:02d}.jpg", quality=95)
        lines.append(f"{index:02d}.jpg,{tag_names(scene)}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def make_voc_tree(root: Path, count: int, *, held_out: int) -> Path:
    """VOC layout with masks and classes.txt, but no tags; the last ``held_out`` images are ``val``."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = [f"scene_{index:04d}" for index in range(count)]
    for name, scene in zip(names, scenes(count), strict=True):
        Image.fromarray(scene.image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        mask = Image.fromarray(scene.mask)
        mask.putpalette([value for color in voc_palette() for value in color])
        mask.save(root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("\n".join(names[: count - held_out]) + "\n")
    (lists / "val.txt").write_text("\n".join(names[count - held_out :]) + "\n")
    (root / "classes.txt").write_text("\n".join(["background", *SCENE_CLASSES]) + "\n")
    return root


def tiny_config(source: Path | str, **flags: Any) -> TrainConfig:
    """A run of seconds: tiny backbone, float32, no loader processes; ``__`` in a flag stands for the dot."""
    settings: dict[str, Any] = {
        "model.backbone": "vit_test_tiny", "model.img_size": SIDE, "data.source": str(source),
        "data.workers": 0, "data.augment": "color", "data.val_images": 4, "run.batch": 4, "run.images": 16,
        "run.precision": "float32", "run.accelerator": "cpu", "run.log_seconds": 0.0,
    }  # fmt: skip
    settings.update({key.replace("__", "."): value for key, value in flags.items()})
    return build_config("mctformer-v2", flags=settings)
