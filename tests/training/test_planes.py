"""Planes beside images: the same crop for both, found by name, and two methods that train with them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.builders import SIDE, make_folder, scenes
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.training.checkpoints import load_run
from wsss_rt.training.config import Augment, TrainConfig, build_config
from wsss_rt.training.data.build import build_data
from wsss_rt.training.data.joint import JOINT, joint_transform
from wsss_rt.training.data.planes import PlaneImages, find_planes
from wsss_rt.training.data.sources import FileSource
from wsss_rt.training.data.transforms import MEAN, STD, build_transform, local_seed, normalise
from wsss_rt.training.fit import fit
from wsss_rt.training.setup import check_model


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight scenes, with planes: their true masks as both CRF outputs, and where an object is as saliency."""
    root = make_folder(tmp_path / "photos", 8)
    for name in ("low", "high", "saliency"):
        (tmp_path / name).mkdir()
    for index, scene in enumerate(scenes(8)):
        for name in ("low", "high"):
            Image.fromarray(scene.mask).save(tmp_path / name / f"{index:02d}.png")
        salient = np.where(scene.mask > 0, 200, 20).astype(np.uint8)
        Image.fromarray(salient).save(tmp_path / "saliency" / f"{index:02d}.png")
    return root


def config(method: str, photos: Path, **flags: object) -> TrainConfig:
    settings: dict[str, object] = {
        "model.backbone": "resnet38d_test_tiny", "model.img_size": SIDE, "data.source": str(photos),
        "data.workers": 0, "data.val_images": 0, "run.batch": 4, "run.images": 8,
        "run.precision": "float32", "run.accelerator": "cpu", "run.log_seconds": 0.0,
    }  # fmt: skip
    return build_config(method, flags=settings | {key.replace("__", "."): v for key, v in flags.items()})


def planes_of(photos: Path, *names: str) -> dict[str, object]:
    folders = {"low_alpha": "low", "high_alpha": "high", "saliency": "saliency"}
    return {f"data__{name}": str(photos.parent / folders[name]) for name in names}


@pytest.mark.parametrize("augment", JOINT)
@pytest.mark.parametrize("shape", [(61, 90), (130, 70), (20, 33)])
def test_a_plane_goes_where_its_image_goes(augment: Augment, shape: tuple[int, int]) -> None:
    # a plane that is bright where the image is: whatever is done to both, they still agree
    image = np.full((*shape, 3), 30, np.uint8)
    rows, columns = slice(shape[0] // 5, shape[0] // 2), slice(shape[1] // 3, shape[1] // 2 + 3)
    image[rows, columns] = 220
    plane = (image[..., 0] > 100).astype(np.uint8) * 5
    for seed in range(4):
        with local_seed(seed):
            moved, (follows,) = joint_transform(augment, (48, 64), (255,))(image, [plane])
        assert moved.shape == (3, 48, 64) and follows.shape == (48, 64)
        values = normalise(moved[None])[0].mean(dim=0).numpy()
        bright = values > np.mean([(0.49 - m) / s for m, s in zip(MEAN, STD, strict=True)])
        known = follows != 255
        # colours vary, and interpolation blurs edges by a pixel or two
        assert (bright[known] == (follows[known] == 5)).mean() > 0.85
        if augment in (Augment.PAD_CROP, Augment.SCALE_CROP):
            assert known.any()
            if augment is Augment.PAD_CROP:
                assert not values[~known].any()
        else:
            assert known.all()


def test_an_image_alone_takes_the_same_crops() -> None:
    image = scenes(1)[0].image
    for augment in (Augment.SHORT_CROP, Augment.PAD_CROP):
        with local_seed(3):
            alone = build_transform(augment, (40, 40), crop_scale=(1, 1))(image)
        with local_seed(3):
            joint, _ = joint_transform(augment, (40, 40), (0,))(image, [image[..., 0]])
        assert torch.equal(alone, joint)


def test_every_image_needs_its_plane_and_they_are_found_by_name(photos: Path) -> None:
    chosen = config("psa", photos, **planes_of(photos, "low_alpha", "high_alpha"))
    data = build_data(chosen.data, seed=0)
    found = find_planes(data.train, chosen.data, ("low_alpha", "high_alpha"))
    assert len(found.paths) == 8 and found.fills == (255, 255)
    assert all(low.stem == high.stem and low.parent.name == "low" for low, high in found.paths)
    (photos.parent / "high" / "03.png").unlink()
    with pytest.raises(WsssError, match="1 of 8 images have no PNG.*03"):
        find_planes(data.train, chosen.data, ("low_alpha", "high_alpha"))


def test_an_affinity_net_trains_from_two_masks_and_resumes_its_run(photos: Path, tmp_path: Path) -> None:
    chosen = config("psa", photos, **planes_of(photos, "low_alpha", "high_alpha"))
    check_model(chosen)
    result = fit(chosen, build_data(chosen.data, seed=0), tmp_path / "run")
    assert result.images == 8 and result.validation == {}
    model, record = load_run(tmp_path / "run")
    assert record.method == "psa" and model(torch.zeros(1, 3, 40, 50)).shape == (1, 34, 5, 7)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert all(f'"{name}"' in log for name in ("background", "class", "different"))


def test_l2g_trains_with_saliency_and_without(photos: Path, tmp_path: Path) -> None:
    kept = {}
    for name in ("saliency", ""):
        planes = planes_of(photos, *([name] if name else []))
        chosen = config("l2g", photos, model__options__views=2, **planes)
        check_model(chosen)
        data = build_data(chosen.data, seed=0)
        result = fit(chosen, replace(data, validation=data.train), tmp_path / f"run{name}")
        assert 0 <= result.validation["map"] <= 1
        kept[name], _ = load_run(tmp_path / f"run{name}")
    first, second = (kept[name].state_dict() for name in ("saliency", ""))
    same = {key.split(".")[0] for key in first if torch.equal(first[key], second[key])}
    differ = {key.split(".")[0] for key in first if not torch.equal(first[key], second[key])}
    # the local net learns from tags alone: saliency reaches the global one only
    assert differ == {"global_net"} and same == {"global_net", "local_net"}


def test_a_plane_of_another_size_stops_with_its_name(photos: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(photos.parent / "low" / "05.png")
    chosen = config("psa", photos, run__images=16, **planes_of(photos, "low_alpha", "high_alpha"))
    with pytest.raises(WsssError, match=r"05\.png is 9x9"):
        fit(chosen, build_data(chosen.data, seed=0), tmp_path / "run")


def test_what_is_missing_or_useless_is_told_before_the_data_are_read(photos: Path) -> None:
    with pytest.raises(UsageError, match="--high-alpha"):
        check_model(config("psa", photos, **planes_of(photos, "low_alpha")))
    with pytest.raises(UsageError, match="psa has no use for data.saliency"):
        check_model(config("psa", photos, **planes_of(photos, "low_alpha", "high_alpha", "saliency")))
    alone = config("l2g", photos, data__augment="official", **planes_of(photos, "saliency"))
    with pytest.raises(UsageError, match="short-crop"):
        build_data(alone.data, seed=0)
    shutil.rmtree(photos.parent / "saliency")
    gone = config("l2g", photos, **planes_of(photos, "saliency"))
    with pytest.raises(UsageError, match="saliency"):
        build_data(gone.data, seed=0)


def test_planes_of_the_files_raster_turn_with_the_image(photos: Path) -> None:
    picture = Image.open(photos / "00.jpg")
    picture = picture.crop((0, 0, 64, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(photos / "00.jpg", exif=exif)
    plane = np.zeros((40, 64), np.uint8)
    plane[:, :8] = 1
    Image.fromarray(plane).save(photos.parent / "saliency" / "00.png")
    chosen = config("l2g", photos, data__augment="none", **planes_of(photos, "saliency"))
    data = build_data(chosen.data, seed=0)
    images = PlaneImages(
        data.train,
        find_planes(data.train, chosen.data, ("saliency",)),
        num_classes=len(data.classes),
        augment=Augment.NONE,
        crop_scale=(1.0, 1.0),
        seed=0,
    )
    assert isinstance(data.train, FileSource)
    index = [item.name for item in data.train.items].index("00.jpg")
    found = images[(0, index, 64, 40)]
    assert not isinstance(found, WsssError)
    image, _, turned = found
    assert image.shape == (3, 64, 40) and turned.shape == (1, 64, 40)
    # what was left in the file is above once it stands upright
    assert turned[0, :8].min() == 1 and not turned[0, 8:].any()
