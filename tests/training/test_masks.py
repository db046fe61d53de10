"""From images and masks to a trained segmenter: data, augmentation, the run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.nasty import jpeg, stored_turned
from tests.training.builders import SIDE, scenes, tiny_config
from wsss_rt.classes import SCENE_CLASSES
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.training.checkpoints import load_run
from wsss_rt.training.config import Augment, TrainConfig, build_config
from wsss_rt.training.data.build import build_data
from wsss_rt.training.data.joint import joint_transform
from wsss_rt.training.data.pairs import MaskedImages
from wsss_rt.training.data.sources import FileSource, Item
from wsss_rt.training.data.transforms import local_seed
from wsss_rt.training.fit import fit
from wsss_rt.training.journal import read_log
from wsss_rt.training.optim import build_optimizer
from wsss_rt.training.setup import check_model, new_model


def labelled(root: Path, count: int) -> tuple[Path, Path]:
    """Images in sub-folders, and an output folder as `label` leaves it: masks and run.json."""
    images, out = root / "photos", root / "labels"
    for index, scene in enumerate(scenes(count)):
        for folder in (images / "a", out / "masks" / "a"):
            folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(images / "a" / f"{index:02d}.jpg", quality=95)
        Image.fromarray(scene.mask, "L").save(out / "masks" / "a" / f"{index:02d}.png")
    (out / "run.json").write_text(json.dumps({"model": {"classes": list(SCENE_CLASSES)}}))
    return images, out


def config_of(method: str, source: Path | str, masks: Path | str = "", **flags: Any) -> TrainConfig:
    base = tiny_config(source).to_dict()
    settings = {
        f"{section}.{key}": base[section][key]
        for section in ("model", "data", "run")
        for key in base[section]
    }
    settings |= {"data.masks": str(masks), **{key.replace("__", "."): value for key, value in flags.items()}}
    return build_config(method, flags=settings)


def open_data(config: TrainConfig) -> Any:
    check_model(config)
    return build_data(config.data, seed=config.run.seed)


def test_masks_belong_to_their_images_and_name_their_classes(tmp_path: Path) -> None:
    images, out = labelled(tmp_path, 6)
    Image.new("RGB", (40, 40)).save(images / "unlabelled.png")
    data = open_data(config_of("segvit", images, out, data__val_images=0))
    assert data.classes.names == SCENE_CLASSES and data.train.count == 6
    assert "6 of 7 images have a mask" in data.messages[0]
    sample = data.train.load(2, mask=True)
    assert sample.name == "a/02.jpg" and np.array_equal(sample.mask, scenes(3)[2].mask)
    # the folder of masks alone says the same, and another root is matched by file name
    moved = open_data(config_of("segvit", images / "a", out / "masks", data__val_images=0))
    assert moved.train.count == 6 and np.array_equal(moved.train.load(2, mask=True).mask, sample.mask)
    (out / "masks" / "a" / "02.png").write_bytes((out / "masks" / "a" / "01.png").read_bytes())
    assert open_data(config_of("segvit", images, out, data__val_images=0)).fingerprint != data.fingerprint


def test_what_does_not_fit_is_said_before_training(tmp_path: Path) -> None:
    images, out = labelled(tmp_path, 3)
    for method, masks, words in (
        ("segvit", "", "--masks"),
        ("mctformer-v2", out, "does not learn from --masks"),
    ):
        with pytest.raises(UsageError, match=words):
            check_model(config_of(method, images, masks))
    with pytest.raises(UsageError, match="for images alone"):
        check_model(config_of("segvit", images, out, data__augment="official"))
    with pytest.raises(WsssError, match="values that are no class"):
        names = tmp_path / "one.txt"
        names.write_text("stripes\n")
        open_data(config_of("segvit", images, out, data__classes=str(names)))
    (images / "a" / "00.jpg").write_bytes(b"no image")
    data = open_data(config_of("segvit", images, out, data__val_images=0))
    assert data.train.count == 2 and "cannot be decoded" in data.messages[1]
    Image.new("L", (5, 5)).save(out / "masks" / "a" / "01.png")
    with pytest.raises(WsssError, match="5x5"):
        open_data(config_of("segvit", images, out))
    shutil.rmtree(out / "masks" / "a")
    with pytest.raises(WsssError, match="none of the 3 images"):
        open_data(config_of("segvit", images, out))
    (out / "run.json").unlink()
    with pytest.raises(UsageError, match="--classes"):
        open_data(config_of("segvit", images, out))


def test_a_mask_turns_with_its_image(tmp_path: Path) -> None:
    """`label` writes masks in the raster of the file, and training sees images upright."""
    upright = np.zeros((12, 20, 3), np.uint8)
    upright[:4, :6] = 255
    for orientation in (1, 3, 6, 8):
        path = tmp_path / f"{orientation}.jpg"
        path.write_bytes(jpeg(stored_turned(upright, orientation), orientation=orientation))
        with Image.open(path) as stored:
            bright = np.asarray(stored.convert("L")) > 128
        Image.fromarray(bright.astype(np.uint8), "L").save(tmp_path / f"{orientation}.png")
        item = Item(path, path.name, (0,), tmp_path / f"{orientation}.png")
        sample = FileSource([item]).load(0, mask=True)
        assert sample.mask is not None and sample.mask.shape == (12, 20)
        assert (sample.mask[:3, :5] == 1).all() and not sample.mask[5:, 7:].any()


@pytest.mark.parametrize("augment", [Augment.NONE, Augment.FLIP, Augment.LIGHT, Augment.SCALE_CROP])
def test_image_and_mask_move_together(augment: Augment) -> None:
    mask = np.zeros((50, 70), np.uint8)
    mask[10:40, 5:30] = 2
    image = np.repeat((mask * 100)[..., None], 3, axis=2)
    transform = joint_transform(augment, (48, 40), (255,), crop_scale=(0.4, 1.0))
    for number in range(8):
        with local_seed(number):
            moved, (target,) = transform(image, [mask])
        ours = moved.numpy().transpose(1, 2, 0)
        assert ours.shape == (48, 40, 3) and target.shape == (48, 40)
        assert set(np.unique(target)) <= {0, 2, 255}
        known = target != 255
        # colours vary, and resizing blurs edges; what is bright is where the class is
        bright = ours.mean(axis=2) > 110
        if augment is Augment.SCALE_CROP and not known.all():
            assert np.ptp(ours[~known].reshape(-1, 3), axis=0).max() == 0
        assert (bright == (target == 2))[known].mean() > 0.85


def test_background_is_unknown_where_it_is_no_output(tmp_path: Path) -> None:
    images, out = labelled(tmp_path, 1)
    data = open_data(config_of("segvit", images, out, data__val_images=0))
    mask = scenes(1)[0].mask.astype(int)
    for background, expected in ((True, mask), (False, np.where(mask == 0, 255, mask - 1))):
        dataset = MaskedImages(
            data.train, background=background, augment=Augment.NONE, crop_scale=(1.0, 1.0), seed=0
        )
        image, target = dataset[0, 0, SIDE, SIDE]  # type: ignore[misc]
        assert image.dtype == target.dtype == torch.uint8 and np.array_equal(target.numpy(), expected)


def test_the_head_may_learn_faster() -> None:
    config = config_of("segvit", "scenes", optim__head_lr_factor=10.0)
    model = new_model(config, num_classes=3)
    groups = build_optimizer(model, config.optim, batch=4).param_groups
    factors = {id(parameter): group["lr_factor"] for group in groups for parameter in group["params"]}
    assert factors[id(model.get_parameter("decode_head.q.weight"))] == 10
    assert factors[id(model.get_parameter("blocks.0.mlp.fc1.weight"))] == 1
    assert len(factors) == len(list(model.parameters()))


def test_masks_train_to_a_run_that_loads(tmp_path: Path) -> None:
    images, out = labelled(tmp_path, 12)
    config = config_of(
        "segvit", images, out, model__options={"decoder_layers": 1, "masks_at": "image"},
        data__augment="light", data__window=48, run__validate_every=8, optim__ema=0.9,
    )  # fmt: skip
    result = fit(config, open_data(config), tmp_path / "run")
    assert result.images == 16 and 0 <= result.validation["miou"]["masks"] <= 1
    model, run = load_run(tmp_path / "run")
    assert model.background and run.model["background"] is True and run.classes == SCENE_CLASSES
    assert (run.input.window, run.input.stride) == (48, 32) and run.recommended.flip is False
    assert "images held out" in run.recommended.provenance
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert set(log[0]["losses"]) == {
        f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0", "_1")
    }
    assert [entry["images"] for entry in log if entry["kind"] == "validation"] == [8, 16]
    with torch.no_grad():
        assert model.segment(torch.zeros(1, 3, 40, 56)).shape == (1, 11, 40, 56)


def test_a_head_learns_the_masks_of_scenes(tmp_path: Path) -> None:
    config = config_of("conv-head", "scenes", run__images=48, run__batch=8, optim__lr=3e-3)
    data = open_data(config)
    fit(config, data, tmp_path / "run")
    log = [entry for entry in read_log(tmp_path / "run" / "log.jsonl") if entry["kind"] == "train"]
    assert log[-1]["losses"]["pixel"] < 0.8 * log[0]["losses"]["pixel"]
