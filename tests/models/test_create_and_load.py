"""Building models by name, and the strict loading of official state dicts."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch

from tests.models.seeded import seeded_state
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.training.models import Localizer, create_model, load_official, method_options, official_shapes

TINY = "vit_test_tiny"


def tiny(version: str = "v2", **options: object) -> Localizer:
    return create_model(f"mctformer-{version}", num_classes=5, backbone=TINY, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_keys_and_shapes_are_the_official_ones(shared_dir: Path, version: str) -> None:
    sections = (shared_dir / "goldens" / "mctformer" / "state_keys_v12.txt").read_text().split("## ")
    lines = next(part for part in sections if part.startswith(version)).splitlines()[1:]
    official = {line.split("\t")[0]: line.split("\t")[1] for line in lines if "\t" in line}
    model = create_model(f"mctformer-{version}", num_classes=20, img_size=224)
    assert {key: str(shape) for key, shape in official_shapes(model).items()} == official


def test_a_wrong_state_dict_is_refused_whole_and_every_key_named() -> None:
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = seeded_state(official_shapes(model), 0.08)
    del state["blocks.1.mlp.fc1.bias"]
    del state["norm.weight"]
    state["blocks.7.norm1.weight"] = torch.ones(32)
    state["cls_token"] = torch.zeros(1, 20, 32)
    with pytest.raises(WsssError) as caught:
        load_official(model, {"model": state})
    message = str(caught.value)
    for part in (
        "2 missing: blocks.1.mlp.fc1.bias, norm.weight",
        "1 extra: blocks.7.norm1.weight",
        "1 misshapen",
    ):
        assert part in message
    assert "cls_token (1, 20, 32) instead of (1, 5, 32)" in message
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_right_state_dict_is_loaded(wrapped: bool) -> None:
    model = tiny()
    state = seeded_state(official_shapes(model), 0.08)
    load_official(model, {"model": state} if wrapped else state)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"name": "mctformer-v3"}, "mctformer-v"),
        ({"backbone": "deit_smal_patch16_224"}, "deit_small_patch16_224"),
        ({"attention_type": "fuse"}, "fused"),
        ({"layer_fused": 3}, "layers_fused"),
        ({"layers_fused": 0}, "at least one layer"),
        ({"backbone": "resnet18"}, "ViT"),
        ({"img_size": 4}, "patch"),
        ({"pretrained": True}, "no pretrained weights"),
    ],
)
def test_wrong_arguments_say_what_is_meant(arguments: dict[str, object], hint: str) -> None:
    call: dict[str, object] = {"name": "mctformer-v2", "num_classes": 5, "backbone": TINY, **arguments}
    with pytest.raises(UsageError, match=hint):
        create_model(**call)  # type: ignore[arg-type]


def test_official_defaults() -> None:
    assert method_options("mctformer-v1") == {
        "layers_fused": 12,
        "attention_type": "attention",
        "affinity": True,
        "affinity_source": "attention",
        "consistency": None,
        "alpha": 100.0,
    }
    assert method_options("mctformer-v2") == method_options("mctformer-v1") | {"attention_type": "fused"}


def test_img_size_fixes_the_stored_grid() -> None:
    assert official_shapes(tiny(img_size=100))["pos_embed"] == (1, 5 + 12 * 12, 32)


def test_weights_of_a_local_file_start_every_class_token(tmp_path: Path) -> None:
    backbone = timm.create_model(TINY, num_classes=3)
    torch.save({"model": backbone.state_dict()}, tmp_path / "deit.pth")
    model = tiny(pretrained=str(tmp_path / "deit.pth"))
    classes, patches = model.get_parameter("pos_embed").split((5, 64), dim=1)
    assert torch.equal(model.get_parameter("cls_token"), backbone.cls_token.expand(-1, 5, -1))
    assert torch.equal(classes, backbone.pos_embed[:, :1].expand(-1, 5, -1))
    assert torch.equal(patches, backbone.pos_embed[:, 1:])
    assert torch.equal(model.state_dict()["blocks.2.attn.qkv.weight"], backbone.blocks[2].attn.qkv.weight)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    other = timm.create_model("vit_scene_hybrid8_160", num_classes=0)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(WsssError, match="patch_embed.proj"):
        tiny(pretrained=str(tmp_path / "other.pth"))


def test_without_a_network_pretrained_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # a name that cannot be resolved stands for the missing network, whatever machine runs this
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://nowhere.invalid")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WsssError, match="no network") as caught:
        create_model("mctformer-v2", num_classes=5, backbone="deit_tiny_patch16_224", pretrained=True)
    assert "without --pretrained" in str(caught.value)


def test_the_untrained_scene_backbone_attends_to_alike_tokens() -> None:
    torch.manual_seed(0)
    model = create_model("mctformer-v2", num_classes=10, backbone="vit_scene_hybrid8_160")
    attention = model.blocks[0].attn
    tokens = torch.nn.functional.layer_norm(torch.randn(40, model.embed_dim), (model.embed_dim,))
    queries, keys, _ = attention.qkv(tokens).chunk(3, dim=-1)
    match = queries @ keys.T
    assert (match.argmax(dim=1) == torch.arange(40)).all()
    # positions are a pattern of neighbours, and class tokens are not copies of each other
    patches = model.get_parameter("pos_embed")[0, 10:].detach()
    gap = (patches[:, None] - patches[None]).norm(dim=-1)
    assert gap[0, 1] < gap[0, 5] and gap[0, 20] < gap[0, 100]
    assert len(model.get_parameter("cls_token")[0].detach().unique(dim=0)) == 10


def test_the_scene_model_fits_twelve_megabytes() -> None:
    model = create_model("mctformer-v2", num_classes=10, backbone="vit_scene_hybrid8_160")
    assert sum(value.numel() for value in model.state_dict().values()) * 4 < 12e6
