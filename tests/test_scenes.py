"""Synthetic scenes: reproducible, truthful, and as difficult as they claim to be."""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from wsss_rt.classes import SCENE_CLASSES, voc_palette
from wsss_rt.errors import UsageError
from wsss_rt.scenes import Scene, render_scene, write_scenes
from wsss_rt.scenes.backgrounds import CONTEXT_CLASSES
from wsss_rt.scenes.render import Layers, render_layers

ROOT = Path(__file__).resolve().parent.parent


@cache
def layers_of_300() -> tuple[Layers, ...]:
    return tuple(render_layers(11, index, 128, 160) for index in range(300))


def same(a: Scene, b: Scene) -> bool:
    return (
        a.jpeg == b.jpeg
        and np.array_equal(a.image, b.image)
        and np.array_equal(a.mask, b.mask)
        and a.tags == b.tags
    )


def test_same_bytes_whatever_was_drawn_before() -> None:
    first = [render_scene(5, index) for index in range(6)]
    backwards = [render_scene(5, index) for index in reversed(range(6))][::-1]
    assert all(same(a, b) for a, b in zip(first, backwards, strict=True))


def test_same_bytes_in_another_process_and_with_one_opencv_thread() -> None:
    program = (
        "import cv2, hashlib; cv2.setNumThreads(1)\n"
        "from wsss_rt.scenes import render_scene\n"
        "s = render_scene(5, 3, height=375, width=500)\n"
        "print(hashlib.sha256(s.jpeg + s.mask.tobytes()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "99"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    here = render_scene(5, 3, height=375, width=500)
    assert done.stdout.strip() == hashlib.sha256(here.jpeg + here.mask.tobytes()).hexdigest()


def test_drawing_leaves_global_state_alone() -> None:
    threads, state = cv2.getNumThreads(), str(np.random.get_state())
    render_scene(5, 0)
    assert cv2.getNumThreads() == threads
    assert str(np.random.get_state()) == state


def test_seeds_and_indices_give_different_scenes() -> None:
    jpegs = {render_scene(seed, index, height=96, width=96).jpeg for seed in (0, 1) for index in range(5)}
    assert len(jpegs) == 10


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (64, 300), (96, 96), (128, 128), (224, 224), (500, 375)]
)
def test_sizes(height: int, width: int) -> None:
    for index in range(8):
        scene = render_scene(3, index, height=height, width=width)
        assert scene.image.shape == (height, width, 3)
        assert scene.image.dtype == scene.mask.dtype == np.uint8
        assert scene.mask.shape == (height, width)
        assert scene.tags


def test_larger_than_the_noise_tiles() -> None:
    assert render_scene(3, 0, height=700, width=1200).image.shape == (700, 1200, 3)


def test_default_sizes_are_varied_and_never_square() -> None:
    shapes = {render_scene(4, index).mask.shape for index in range(25)}
    assert len(shapes) > 20
    for height, width in shapes:
        assert height != width
        assert 160 <= min(height, width) <= 256
        assert max(height, width) <= 1.6 * min(height, width) + 1
    assert len({height > width for height, width in shapes}) == 2


def test_image_is_what_the_jpeg_holds(tmp_path: Path) -> None:
    scene = render_scene(4, 1)
    (tmp_path / "a.jpg").write_bytes(scene.jpeg)
    stored = cv2.imread(str(tmp_path / "a.jpg"))
    assert stored is not None
    decoded = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
    assert np.array_equal(decoded, scene.image)


def test_tags_are_exactly_the_classes_of_the_mask() -> None:
    for index in range(60):
        scene = render_scene(9, index)
        values = set(np.unique(scene.mask).tolist()) - {0}
        assert values == {tag + 1 for tag in scene.tags}
        assert list(scene.tags) == sorted(scene.tags)
        assert 0 in scene.mask  # there is always background


def test_classes_are_about_equally_frequent() -> None:
    counts = Counter(tag for layers in layers_of_300() for tag in layers.classes)
    assert set(counts) == set(range(10))
    assert max(counts.values()) < 2 * min(counts.values())
    numbers = Counter(len(layers.objects) for layers in layers_of_300())
    assert set(numbers) == {1, 2, 3, 4}


def test_only_a_part_of_every_object_carries_its_pattern() -> None:
    ratios = []
    for layers in layers_of_300():
        object_pixels = layers.mask > 0
        assert not (layers.emblem & ~object_pixels).any()
        for item in np.unique(layers.owner[object_pixels]):
            body = layers.owner == item
            shown = np.count_nonzero(layers.emblem & body)
            assert np.count_nonzero(body) >= 60
            assert shown > 0  # an object whose class cannot be seen must not be in the mask
            ratios.append(shown / np.count_nonzero(body))
    assert 0.5 < np.mean(ratios) < 0.65
    assert np.quantile(ratios, 0.9) < 0.75


def test_contexts_come_mostly_with_their_class_and_are_rare_without() -> None:
    for which in CONTEXT_CLASSES:
        present = [which in layers.contexts for layers in layers_of_300() if which in layers.classes]
        absent = [which in layers.contexts for layers in layers_of_300() if which not in layers.classes]
        assert 0.55 < np.mean(present) < 0.92
        assert 0.005 < np.mean(absent) < 0.13


def test_unlabelled_bodies_are_background() -> None:
    layers = next(one for one in layers_of_300() if ((one.owner > 0) & (one.mask == 0)).sum() > 300)
    distractor = (layers.owner > 0) & (layers.mask == 0)
    assert not layers.emblem[distractor].any()


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = "from wsss_rt.cli.app import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "scenes", *arguments], env=environment, capture_output=True, text=True
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_command_writes_a_voc_tree(tmp_path: Path) -> None:
    out = tmp_path / "set"
    done = run_cli("--out", str(out), "--count", "5", "--seed", "21", "--size", "96x128")
    assert done.returncode == 0, done.stderr
    stems = (out / "ImageSets/Segmentation/all.txt").read_text().split()
    assert stems == [f"scene_21_{index:06d}" for index in range(5)]
    with (out / "labels.csv").open(newline="") as file:
        rows = {row["image"]: row["tags"].split(";") for row in csv.DictReader(file)}
    palette = [channel for color in voc_palette() for channel in color]
    for index, stem in enumerate(stems):
        scene = render_scene(21, index, height=96, width=128)
        assert (out / "JPEGImages" / f"{stem}.jpg").read_bytes() == scene.jpeg
        with (
            Image.open(out / "SegmentationClass" / f"{stem}.png") as mask,
            Image.open(out / "JPEGImages" / f"{stem}.jpg") as image,
        ):
            assert mask.mode == "P"
            assert mask.size == image.size == (128, 96)
            used = int(scene.mask.max()) + 1
            assert (mask.getpalette() or [])[: 3 * used] == palette[: 3 * used]
            assert np.array_equal(np.asarray(mask), scene.mask)
        assert rows[f"{stem}.jpg"] == [SCENE_CLASSES[tag] for tag in scene.tags]
    assert (out / "classes.txt").read_text().splitlines()[:2] == ["0 background", "1 stripes"]


def test_a_stopped_run_is_completed_with_the_same_bytes(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    write_scenes(whole, 4, 2, (64, 80))

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(stopped, 4, 2, (64, 80), progress=stop)
    assert not (stopped / "labels.csv").exists()
    write_scenes(stopped, 4, 2, (64, 80))
    assert tree(stopped) == tree(whole)


def test_a_folder_with_other_content_is_refused_untouched(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        write_scenes(mine, 2, 0, (64, 64))
    assert tree(mine) == {"thesis.txt": b"years of work"}
    other = tmp_path / "other"
    write_scenes(other, 2, 0, (64, 64))
    before = tree(other)
    with pytest.raises(UsageError, match="another set"):
        write_scenes(other, 2, 1, (64, 64))
    with pytest.raises(UsageError, match="not a folder"):
        write_scenes(mine / "thesis.txt", 2, 1, (64, 64))
    assert tree(other) == before


@pytest.mark.parametrize("size", ["224", "0x64", "63x100", "ax5", "-5x70", "99999x64", "64x64x3"])
def test_bad_sizes_are_usage_errors(tmp_path: Path, size: str) -> None:
    from wsss_rt.cli.scenes import scenes

    with pytest.raises(UsageError, match="224x224"):
        scenes(tmp_path / "out", 2, 0, size)
    assert not (tmp_path / "out").exists()


def test_bad_size_on_the_command_line_ends_with_2_and_one_line(tmp_path: Path) -> None:
    done = run_cli("--out", str(tmp_path / "out"), "--count", "2", "--size", "big")
    assert done.returncode == 2
    assert "big" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_wrong_numbers_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_scenes(tmp_path / "out", 0, 1)
    with pytest.raises(UsageError):
        write_scenes(tmp_path / "out", 1, -1)
    with pytest.raises(UsageError):
        render_scene(0, 0, height=100)
