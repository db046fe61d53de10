"""TS-CAM against numbers that the official code gave, and what sets it apart."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from tests.models.compare import relative_error
from tests.models.seeded import seeded_images, seeded_state
from wsss_rt.errors import UsageError
from wsss_rt.training.losses import multilabel_soft_margin
from wsss_rt.training.models import Localizer, create_model, load_official, method_options, official_shapes

TINY = "vit_test_tiny"


@cache
def official_model() -> Localizer:
    model = create_model("ts-cam", num_classes=20, img_size=224)
    load_official(model, seeded_state(official_shapes(model), 0.08))
    return model.eval()


def tiny(**options: object) -> Localizer:
    model = create_model("ts-cam", num_classes=5, backbone=TINY, **options)  # type: ignore[arg-type]
    load_official(model, seeded_state(official_shapes(model), 0.2))
    return model.eval()


def close(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    return relative_error(ours.detach().numpy(), expected.detach().numpy()) < 1e-5


def test_keys_and_shapes_are_the_official_ones(shared_dir: Path) -> None:
    lines = (shared_dir / "goldens" / "mctformer" / "state_keys_tscam.txt").read_text().splitlines()
    official = {line.split("\t")[0]: line.split("\t")[1] for line in lines if "\t" in line}
    # the list leaves out blocks 1 to 11, which look like block 0
    for key, shape in list(official.items()):
        for index in range(1, 12) if key.startswith("blocks.0.") else ():
            official[key.replace("blocks.0.", f"blocks.{index}.")] = shape
    assert {key: str(shape) for key, shape in official_shapes(official_model()).items()} == official


@torch.no_grad()
def test_every_intermediate_equals_the_official_one(goldens_dir: Path) -> None:
    golden = np.load(goldens_dir / "mctformer" / "tscam_scale008_224x224.npz", allow_pickle=False)
    images = seeded_images(0, 224, 224)
    extras = official_model().localize(images, extras=True).extras

    assert set(extras) == set(golden.files)
    errors = {key: relative_error(extras[key].numpy(), golden[key]) for key in golden.files}
    assert {key: error for key, error in errors.items() if error > 1e-5} == {}
    # what is exported must be the same numbers as what the traced run shows
    out = official_model().localize(images)
    assert relative_error(out.maps[0].numpy(), golden["cams"]) < 1e-5
    assert relative_error(out.scores.numpy(), golden["logits"]) < 1e-5


@torch.no_grad()
def test_the_second_set_of_official_numbers(shared_dir: Path) -> None:
    golden = np.load(
        shared_dir / "goldens" / "token_refinement" / "tscam_small_224_c200_s08.npz", allow_pickle=False
    )
    model = create_model("ts-cam", num_classes=200, img_size=224, backbone="deit_small_patch16_224").eval()
    load_official(model, seeded_state(official_shapes(model), float(golden["scale"])))
    out = model.localize(seeded_images(0, 224, 224), extras=True)
    assert float(np.abs(out.scores.numpy() - golden["logits"]).max()) < 2e-4
    assert float(np.abs(out.maps.numpy() - golden["cams"]).max()) < 5e-4
    extras = out.extras
    for ours, key in (
        (extras["cls_attn_layers"].sum(dim=0), "attn_map"),
        (extras["semantic_map"], "feature_map"),
    ):
        assert relative_error(ours.numpy().reshape(golden[key].shape), golden[key]) < 1e-5, key


def test_the_loss_trains_every_parameter() -> None:
    model = create_model("ts-cam", num_classes=5, backbone=TINY).train()
    losses = model.losses(torch.randn(2, 3, 64, 64), torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]))
    assert set(losses) == {"patch"}
    losses["patch"].backward()
    assert all(value.grad is not None for value in model.parameters())


@torch.no_grad()
def test_training_and_localizing_see_the_same_logits() -> None:
    model, targets = tiny(), torch.tensor([[1.0, 0, 0, 0, 1]])
    images = seeded_images(0, 61, 90)
    expected = multilabel_soft_margin(model.localize(images).scores, targets)
    assert torch.isclose(model.losses(images, targets)["patch"], expected, rtol=1e-5)


@torch.no_grad()
def test_all_classes_share_one_attention_summed_over_the_last_layers() -> None:
    images = seeded_images(0, 64, 80)
    extras = tiny().localize(images, extras=True).extras
    for layers in (1, 2, 12):
        shared = extras["cls_attn_layers"][-layers:].sum(dim=0)
        maps = tiny(layers_fused=layers).localize(images).maps[0]
        assert close(maps, shared * extras["semantic_map"])
    assert float(maps.min()) < 0 < float(maps.max())


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch() -> None:
    model = tiny()
    images = torch.cat([seeded_images(seed, 72, 93) for seed in range(3)])
    together = model.localize(images, extras=True)
    assert together.maps.shape == (3, 5, 9, 11)
    assert together.extras["cls_attn_layers"].shape == (3, 3, 9, 11)
    for index in range(3):
        alone = model.localize(images[index : index + 1])
        assert close(alone.maps[0], together.maps[index])
        assert close(alone.scores[0], together.scores[index])


def test_a_pretrained_backbone_gives_its_only_class_token(tmp_path: Path) -> None:
    backbone = timm.create_model(TINY, num_classes=3)
    torch.save(backbone.state_dict(), tmp_path / "deit.pth")
    model = create_model("ts-cam", num_classes=5, backbone=TINY, pretrained=tmp_path / "deit.pth")
    assert torch.equal(model.get_parameter("cls_token"), backbone.cls_token)
    assert torch.equal(model.get_parameter("pos_embed"), backbone.pos_embed)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@torch.no_grad()
def test_one_label_an_image_is_learned_by_a_softmax(smoothing: float) -> None:
    model = tiny(loss="cross_entropy", smoothing=smoothing)
    images, labels = torch.cat([seeded_images(seed, 64, 64) for seed in range(2)]), torch.tensor([3, 0])
    expected = torch.nn.functional.cross_entropy(
        model.localize(images).scores, labels, label_smoothing=smoothing
    )
    loss = model.losses(images, torch.eye(5)[labels])["patch"]
    assert abs(float(loss - expected)) < 1e-5 * float(expected)


def test_official_defaults() -> None:
    assert method_options("ts-cam") == {
        "layers_fused": 12,
        "loss": "soft_margin",
        "smoothing": 0.0,
        "consistency": None,
        "alpha": 100.0,
    }


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"layer_fused": 3}, "layers_fused"),
        ({"layers_fused": 0}, "at least one layer"),
        ({"affinity": True}, "affinity"),
        ({"loss": "crossentropy"}, "cross_entropy"),
        ({"smoothing": 0.1}, "belongs to the loss 'cross_entropy'"),
    ],
)
def test_wrong_options_say_what_is_meant(options: dict[str, object], hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        tiny(**options)
