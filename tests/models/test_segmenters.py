"""Segmenters beyond the goldens: any size, constants, starting from a localizer, what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wsss_rt.errors import UsageError, WsssError
from wsss_rt.training.checkpoints import RunConfig, save_run
from wsss_rt.training.mask_losses import pixel_cross_entropy
from wsss_rt.training.models import SEGMENTERS, create_model
from wsss_rt.training.models.segmenter import Segmenter

TINY = {"num_classes": 3, "backbone": "vit_test_tiny", "img_size": 64}
OPTIONS = {"segvit": {"decoder_layers": 1}, "segvit-shrunk": {"decoder_layers": 1}, "conv-head": {}}


def tiny(method: str, **options: object) -> Segmenter:
    torch.manual_seed(0)
    return create_model(method, **TINY, **{**OPTIONS[method], **options}).eval()


@pytest.mark.parametrize("method", sorted(SEGMENTERS))
@torch.no_grad()
def test_scores_have_the_images_size_and_a_background(method: str) -> None:
    model = tiny(method, background=True, masks_at="image")
    for height, width in ((64, 64), (40, 72), (37, 90), (8, 9)):
        images = torch.randn(2, 3, height, width)
        scores, maps = model(images)
        assert scores.shape == (2, 3) and maps.shape == (2, 4, height, width)
        assert torch.isfinite(maps).all() and maps.min() >= 0
    assert torch.equal(model.segment(images), maps)
    assert tiny(method).segment(images).shape[1] == 3


@pytest.mark.parametrize("method", ["segvit", "conv-head"])
@torch.no_grad()
def test_padding_is_cut_off_where_the_image_ends(method: str) -> None:
    """What is filled up to whole patches must not stretch the masks of the rest."""
    model = tiny(method, masks_at="image")
    images = torch.zeros(1, 3, 61, 64)
    images[..., :30] = 2.0
    padded = torch.nn.functional.pad(images, (0, 0, 0, 3))
    assert torch.allclose(model.segment(images), model.segment(padded)[:, :, :61], atol=1e-6)


@pytest.mark.parametrize("method", ["segvit", "segvit-shrunk"])
def test_folded_constants_change_no_value(method: str) -> None:
    model = tiny(method)
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        plain = model.segment(images)
        with model.constants_folded():
            queries = model.get_submodule("decode_head.q")
            assert queries.folded is not None and not queries.folded.queries.requires_grad
            assert torch.equal(model.segment(images), plain)
        assert queries.folded is None
        queries.weight += 1
        assert not torch.equal(model.segment(images), plain)


@pytest.mark.parametrize("method", sorted(SEGMENTERS))
def test_every_parameter_learns_and_unknown_pixels_teach_no_class(method: str) -> None:
    model = tiny(method, background=True).train()
    targets = torch.full((2, 64, 64), 255, dtype=torch.uint8)
    targets[:, :20], targets[:, 20:40] = 0, 2
    losses = model.losses(torch.randn(2, 3, 64, 64), targets)
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []
    assert all(torch.isfinite(value) for value in losses.values())
    heads = {id(parameter) for parameter in model.head_parameters()}
    trunk = {name for name, value in model.named_parameters() if id(value) not in heads}
    assert trunk and all(name.startswith(("patch_embed", "blocks", "pos_embed")) for name in trunk)


def test_cross_entropy_leaves_unknown_pixels_out() -> None:
    logits, targets = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    targets[0, :2] = 255
    expected = torch.nn.functional.cross_entropy(logits[:, :, 2:], targets[:, 2:])
    assert torch.allclose(pixel_cross_entropy(logits, targets), expected)
    assert pixel_cross_entropy(logits, torch.full((1, 4, 4), 255)) == 0


def test_a_backbone_comes_from_a_localizers_run(tmp_path: Path) -> None:
    model = create_model("mctformer-v2", num_classes=5, backbone="vit_test_tiny", img_size=32)
    arguments = {"backbone": "vit_test_tiny", "img_size": 32}
    save_run(tmp_path / "run", model, RunConfig("mctformer-v2", tuple("abcde"), arguments))
    student = create_model("segvit", **TINY, pretrained=str(tmp_path / "run"))
    for name in ("blocks.2.attn.qkv.weight", "patch_embed.proj.weight"):
        assert torch.equal(student.get_parameter(name), model.get_parameter(name))
    # 4x4 positions were resized to 8x8: corners are nearest to corners
    patches = model.stored_positions()[1][0, 0]
    grown = student.get_parameter("pos_embed")[0]
    assert torch.nn.functional.cosine_similarity(grown[0], patches, dim=0) > 0.9
    with pytest.raises(WsssError, match="mctformer-v2 on vit_test_tiny"):
        create_model(
            "segvit", num_classes=3, backbone="vit_scene_hybrid8_160", pretrained=str(tmp_path / "run")
        )


def test_impossible_options_say_what_would_be_possible() -> None:
    with pytest.raises(UsageError, match="trunk of 3") as caught:
        tiny("segvit", taps=[1, 5])
    assert "[0, 1, 2]" in str(caught.value)
    with pytest.raises(UsageError, match="shrink_at 3"):
        tiny("segvit-shrunk", shrink_at=3)
    with pytest.raises(UsageError, match="did you mean 'image'"):
        tiny("conv-head", masks_at="imag")
