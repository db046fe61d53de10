"""Sources, the checks before training, augmentation and the order of batches, on real files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.builders import SIDE, make_folder, make_voc_tree, scenes, tag_names
from wsss_rt.classes import SCENE_CLASSES
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.training.config import Augment, DataSection
from wsss_rt.training.data.build import TrainingData, build_data
from wsss_rt.training.data.loader import BatchOrder, TrainingImages, batch_sizes, build_loader
from wsss_rt.training.data.sources import FileSource, SceneSource
from wsss_rt.training.data.transforms import MEAN, STD, build_transform, local_seed, normalise


def open_data(source: Path | str, **settings: object) -> TrainingData:
    return build_data(DataSection(source=str(source), **settings), seed=0)  # type: ignore[arg-type]


def names(data: TrainingData) -> list[str]:
    assert isinstance(data.train, FileSource)
    return [item.name for item in data.train.items]


def warnings(data: TrainingData) -> str:
    return "\n".join(line for line in data.messages if line.startswith("warning"))


def test_folder_with_labels_csv(tmp_path: Path) -> None:
    data = open_data(make_folder(tmp_path / "d", 6), classes="scenes", val_images=0)
    assert data.classes.names == SCENE_CLASSES and data.validation is None
    sample = data.train.load(3)
    scene = scenes(4)[3]
    assert sample.tags == tuple(sorted(scene.tags)) and sample.name == "03.jpg"
    assert np.abs(sample.image.astype(int) - scene.image).mean() < 6
    assert data.facts["images"]["used"] == 6
    assert data.facts["images_per_class"][SCENE_CLASSES[scene.tags[0]]] >= 1


def test_every_finding_is_counted_and_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", 6)
    lines = (root / "labels.csv").read_text().splitlines()
    lines[1] = "00.jpg,"
    lines = [line for line in lines if not line.startswith("01.jpg")] + ["ghost.jpg,dots"]
    (root / "labels.csv").write_text("\n".join(lines))
    (root / "02.jpg").write_bytes((root / "02.jpg").read_bytes()[:700])
    (root / "03.jpg").write_bytes(b"")
    data = open_data(root, classes="scenes", val_images=0)
    assert names(data) == ["04.jpg", "05.jpg"]
    text = warnings(data)
    assert "1 listed in the tags, but missing: ghost.jpg" in text
    assert "1 not in the tags, left out: 01.jpg" in text
    assert "1 listed without a tag, left out: 00.jpg" in text
    assert "2 cannot be decoded, left out: 02.jpg (truncated" in text and "03.jpg (empty" in text
    assert "classes without an image" in text
    assert data.facts["images"] | {"without_images": 0} == {
        "listed": 6, "used": 2, "missing": 1, "untagged": 1, "empty": 1, "broken": 2, "without_images": 0,
    }  # fmt: skip


def test_photographs_have_no_close_ups(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only scenes can be shown as close-ups"):
        open_data(make_folder(tmp_path / "data", 2), close_ups=8)


def test_unknown_classes_are_fatal(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", 3)
    (root / "labels.csv").write_text("image,tags\n00.jpg,dotz\n01.jpg,dotz;checks\n02.jpg,unicorn\n")
    with pytest.raises(UsageError) as caught:
        open_data(root, classes="scenes")
    assert "2 unknown classes: 'dotz' (2 images), 'unicorn' (1 images)" in str(caught.value)
    assert "did you mean 'dots'" in str(caught.value)


def test_the_wrong_folder_is_fatal(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", 4)
    for name in ("00", "01", "02"):
        (root / f"{name}.jpg").unlink()
    with pytest.raises(
        WsssError, match=r"3 of 4 images that .* lists are missing\. 00\.jpg, 01\.jpg, 02\.jpg"
    ):
        open_data(root)


def test_two_images_cannot_share_one_entry(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", 2)
    (root / "sub").mkdir()
    shutil.copy(root / "00.jpg", root / "sub" / "00.jpg")
    with pytest.raises(WsssError, match=r"00\.jpg and sub/00\.jpg both match"):
        open_data(root)


def test_folders_as_tags(tmp_path: Path) -> None:
    for index, scene in enumerate(scenes(4)):
        folder = tmp_path / "d" / ("cat" if index % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(folder / f"{index}.png")
    data = open_data(tmp_path / "d", val_images=0)
    assert data.classes.names == ("cat", "dog")
    assert sorted((name, data.train.load(i).tags) for i, name in enumerate(names(data))) == [
        ("cat/1.png", (0,)), ("cat/3.png", (0,)), ("dog/0.png", (1,)), ("dog/2.png", (1,)),
    ]  # fmt: skip


def test_nothing_to_read_tags_from(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", 2)
    (root / "labels.csv").unlink()
    with pytest.raises(UsageError, match="add --tags FILE"):
        open_data(root)


def test_images_held_out_stay_out_and_do_not_move(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", 30)
    data = open_data(root, classes="scenes", val_images=100)
    assert isinstance(data.validation, FileSource)
    held = {item.name for item in data.validation.items}
    assert len(held) == 3 and not held & set(names(data)) and len(names(data)) == 27
    again = open_data(root, classes="scenes", val_images=100)
    assert isinstance(again.validation, FileSource)
    assert {item.name for item in again.validation.items} == held and again.fingerprint == data.fingerprint


def test_the_fingerprint_sees_a_changed_tag(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", 5)
    before = open_data(root, classes="scenes").fingerprint
    text = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(text.replace(tag_names(scenes(1)[0]), "waves;bricks;stars;rings", 1))
    assert open_data(root, classes="scenes").fingerprint != before


def test_voc_tree_takes_tags_from_masks_xml_or_csv(tmp_path: Path) -> None:
    root = make_voc_tree(tmp_path / "voc", 6, held_out=2)
    expected = [tuple(sorted(scene.tags)) for scene in scenes(4)]

    def tags_of(data: TrainingData) -> list[tuple[int, ...]]:
        return [data.train.load(index).tags for index in range(data.train.count or 0)]

    from_masks = open_data(root)
    assert from_masks.classes.names == SCENE_CLASSES and from_masks.facts["tags"] == "masks"
    assert names(from_masks) == [f"scene_{index:04d}" for index in range(4)]
    assert tags_of(from_masks) == expected

    (root / "Annotations").mkdir()
    for index, scene in enumerate(scenes(6)):
        objects = "".join(f"<object><name>{SCENE_CLASSES[tag]}</name></object>" for tag in scene.tags)
        (root / "Annotations" / f"scene_{index:04d}.xml").write_text(f"<annotation>{objects}</annotation>")
    from_xml = open_data(root)
    assert from_xml.facts["tags"] == "Annotations" and tags_of(from_xml) == expected

    rows = [f"scene_{index:04d},{tag_names(scene)}" for index, scene in enumerate(scenes(6))]
    (root / "labels.csv").write_text("\n".join(["image,tags", *rows]))
    from_csv = open_data(root)
    assert from_csv.facts["tags"] == "labels.csv" and tags_of(from_csv) == expected
    assert open_data(root, tags="voc").facts["tags"] == "Annotations"
    assert open_data(root, tags="masks").facts["tags"] == "masks"


def test_voc_validation_brings_its_masks_and_never_overlaps(tmp_path: Path) -> None:
    root = make_voc_tree(tmp_path / "voc", 6, held_out=2)
    data = open_data(root)
    assert data.validation is not None and data.validation.has_masks and data.validation.count == 2
    sample = data.validation.load(1, mask=True)
    assert sample.mask is not None
    assert np.array_equal(sample.mask, scenes(6)[5].mask)
    val = root / "ImageSets" / "Segmentation" / "val.txt"
    val.write_text("scene_0001\nscene_0005\n")
    with pytest.raises(WsssError, match="1 images stand in both train and val, e.g. scene_0001"):
        open_data(root)


def test_voc_split_by_name_with_its_nearest(tmp_path: Path) -> None:
    root = make_voc_tree(tmp_path / "voc", 4, held_out=1)
    assert names(open_data(root, split="val")) == ["scene_0003"]
    with pytest.raises(UsageError, match=r"no split 'trian'.*did you mean 'train'"):
        open_data(root, split="trian")


def test_voc_reports_images_of_the_split_that_are_missing(tmp_path: Path) -> None:
    root = make_voc_tree(tmp_path / "voc", 5, held_out=1)
    (root / "JPEGImages" / "scene_0002.jpg").unlink()
    assert "1 listed in the tags, but missing: scene_0002" in warnings(open_data(root))


def test_path_style_lists_are_understood(tmp_path: Path) -> None:
    root = make_voc_tree(tmp_path / "voc", 3, held_out=1)
    text = "/JPEGImages/scene_0000.jpg /SegmentationClassAug/scene_0000.png\nscene_0001 1\n"
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text(text)
    assert names(open_data(root)) == ["scene_0000", "scene_0001"]


def test_a_mask_of_another_size_is_named_before_training(tmp_path: Path) -> None:
    root = make_voc_tree(tmp_path / "voc", 3, held_out=1)
    path = root / "SegmentationClass" / "scene_0002.png"
    Image.fromarray(np.ones((10, 20), np.uint8)).save(path)
    with pytest.raises(WsssError, match=r"scene_0002\.png is 20x10"):
        open_data(root)


def test_problems_of_validation_images_are_said_and_left_out(tmp_path: Path) -> None:
    root = make_voc_tree(tmp_path / "voc", 6, held_out=3)
    (root / "JPEGImages" / "scene_0004.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "JPEGImages" / "scene_0005.jpg").unlink()
    data = open_data(root)
    assert data.validation is not None and data.validation.count == 1
    text = "\n".join(data.messages)
    assert "validation: warning: 1 listed in the tags, but missing: scene_0005" in text
    assert "validation: warning: 1 cannot be decoded, left out: scene_0004" in text


def test_scenes_take_no_foreign_tags_and_no_shared_seed() -> None:
    with pytest.raises(UsageError, match="own tags"):
        open_data("scenes", tags="x.csv")
    with pytest.raises(UsageError, match="share the seed 0"):
        open_data("scenes", val_seed=0)
    data = open_data("scenes")
    assert data.train.count is None and data.classes.names == SCENE_CLASSES


def fixed(side: int) -> Callable[[int], tuple[int, int]]:
    return lambda _: (side, side)


def test_an_image_that_breaks_later_ends_training_by_name(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", 4)
    data = open_data(root, val_images=0)
    (root / "02.jpg").write_bytes(b"gone")
    order = BatchOrder(4, batch=4, batches=1, seed=0, sizes=fixed(SIDE))
    images = TrainingImages(
        data.train, num_classes=len(data.classes), augment=Augment.NONE, crop_scale=[1, 1], seed=0
    )
    for workers in (0, 1):
        (batch,) = list(build_loader(images, order, workers=workers, pin=False))
        assert isinstance(batch, WsssError) and "cannot read the training image 02.jpg" in str(batch)


def test_epochs_show_every_image_once_in_a_new_order() -> None:
    order = BatchOrder(10, batch=4, batches=5, seed=3, sizes=fixed(8))
    seen = [key[1] for batch in order for key in batch]
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert [key[0] for batch in order for key in batch] == list(range(20))


def test_a_later_start_continues_the_same_order() -> None:
    section = DataSection(sizes=[[8, 8], [8, 12], [12, 8]])
    sizes = batch_sizes(section, side=8, batch=3, batches=9, seed=1)
    whole = list(BatchOrder(7, batch=3, batches=9, seed=1, sizes=sizes))
    assert list(BatchOrder(7, batch=3, batches=9, seed=1, sizes=sizes, first=4)) == whole[4:]
    assert all(len({key[2:] for key in batch}) == 1 for batch in whole)
    assert len({batch[0][2:] for batch in whole}) > 1


def test_a_run_may_begin_with_small_close_ups_and_grow() -> None:
    section = DataSection(sizes=[[8, 8], [8, 12]], size_order="growing", close_ups=5, close_up_size=6)
    sizes = batch_sizes(section, side=99, batch=4, batches=8, seed=1)
    assert [sizes(number) for number in range(8)] == [(6, 6)] * 2 + [(8, 8)] * 3 + [(8, 12)] * 3
    only = DataSection(close_ups=100)
    assert {batch_sizes(only, side=9, batch=4, batches=3, seed=1)(number) for number in range(3)} == {(9, 9)}
    source = SceneSource(3, close_ups=20)
    assert all(len(source.load(index, size=(64, 64)).tags) == 1 for index in range(20))
    assert any(len(source.load(index, size=(64, 64)).tags) > 1 for index in range(20, 40))


def test_devices_share_each_batch() -> None:
    whole = list(BatchOrder(None, batch=6, batches=3, seed=0, sizes=fixed(8)))
    parts = [
        list(BatchOrder(None, batch=6, batches=3, seed=0, sizes=fixed(8), rank=r, world=2)) for r in (0, 1)
    ]
    for number, batch in enumerate(whole):
        assert sorted(parts[0][number] + parts[1][number]) == sorted(batch)


# the one left out is for images with masks: tests/training/test_masks.py
@pytest.mark.parametrize("augment", [augment for augment in Augment if augment != Augment.SCALE_CROP])
def test_augmentation_depends_on_the_sample_alone(augment: Augment) -> None:
    def load(workers: int, first: int) -> torch.Tensor:
        order = BatchOrder(None, batch=4, batches=2, seed=5, sizes=fixed(SIDE), first=first)
        images = TrainingImages(
            SceneSource(9), num_classes=10, augment=augment, crop_scale=[0.5, 1.0], seed=5
        )
        return torch.stack(
            [normalise(batch[0]) for batch in build_loader(images, order, workers=workers, pin=False)]
        )

    torch.manual_seed(1)
    whole = load(0, 0)
    torch.rand(3)
    assert torch.equal(load(1, 1)[0], whole[1])
    assert whole.shape == (2, 4, 3, SIDE, SIDE) and whole.dtype == torch.float32
    assert torch.isfinite(whole).all()


def test_augmentation_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    with local_seed(1, 2, 3):
        torch.rand(10)
    assert torch.equal(torch.rand(4), expected)


def test_no_augmentation_is_the_image_normalised() -> None:
    scene = scenes(1)[0]
    tensor = build_transform(Augment.NONE, (SIDE, SIDE), crop_scale=[1, 1])(scene.image)
    expected = (scene.image / 255.0 - np.array(MEAN)) / np.array(STD)
    assert torch.allclose(
        normalise(tensor[None])[0], torch.tensor(expected.transpose(2, 0, 1)).float(), atol=1e-5
    )


def test_crops_keep_the_share_that_was_asked_for() -> None:
    # a horizontal ramp: the range of values in a crop shows the width that it covers
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 100, 0).repeat(3, 2)
    image = np.ascontiguousarray(ramp)
    wide, narrow = (
        build_transform(Augment.LIGHT, (32, 32), crop_scale=scale) for scale in ([1.0, 1.0], [0.05, 0.1])
    )
    spans = []
    for transform in (wide, narrow):
        with local_seed(1):
            spans.append(float(np.mean([np.ptp(transform(image)[1].numpy()) for _ in range(10)])))
    assert spans[1] < 0.6 * spans[0]
