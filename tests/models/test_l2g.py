"""L2G on a trunk of a few thousand weights: what learns from what, and what a wrong setting is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.seeded import seeded_conv_state, seeded_images
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.localize import merge_passes
from wsss_rt.model_card import MapRule
from wsss_rt.training.config import build_config
from wsss_rt.training.models import create_model, load_official, method_options, official_shapes
from wsss_rt.training.models.l2g import L2G
from wsss_rt.training.optim import build_optimizer

TINY = "resnet38d_test_tiny"
TARGETS = torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 0]])


def tiny(**options: object) -> L2G:
    torch.manual_seed(0)
    model = create_model("l2g", num_classes=5, backbone=TINY, **{"img_size": 64, **options})  # type: ignore[arg-type]
    assert isinstance(model, L2G)
    return model


def gradients(model: L2G, loss: torch.Tensor) -> set[str]:
    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {name for name, value in model.named_parameters() if value.grad is not None}


@torch.no_grad()
def test_spreading_maps_equals_spreading_the_channels_under_the_head() -> None:
    net = tiny().eval().global_net
    images = seeded_images(3, 61, 90)
    found = net.intermediates(images)
    conv6 = net.trunk(images).conv6
    spread = (conv6.flatten(2) @ found["pcm_affinity"]).reshape(conv6.shape)
    expected = net.fc8(spread)
    assert torch.allclose(found["cam_att"], expected, atol=1e-5 * float(expected.abs().max()))
    # sizes round up: 61 x 90 pixels are 8 x 12 cells
    assert found["featmap"].shape == (1, 6, 8, 12)


def test_each_net_learns_from_its_own_loss_and_the_stem_from_none() -> None:
    model = tiny().train()
    losses = model.losses(torch.randn(2, 3, 64, 64), TARGETS)
    assert set(losses) == {"local", "transfer"}
    by_tags, by_transfer = gradients(model, losses["local"]), gradients(model, losses["transfer"])
    assert all(name.startswith("local_net.") for name in by_tags)
    assert all(name.startswith("global_net.") for name in by_transfer)
    wanted = {name for name, value in model.named_parameters() if value.requires_grad}
    assert by_tags | by_transfer == wanted
    resting = {name.split(".")[2] for name in dict(model.named_parameters()) if name not in wanted}
    assert {"conv1a", "b2", "bn7"} <= resting
    assert not any(isinstance(part, torch.nn.BatchNorm2d) and part.training for part in model.modules())
    # the relations of pixels learn, though nothing flows from them into the trunk
    assert "global_net.f9.weight" in by_transfer


def test_the_same_seed_draws_the_same_views() -> None:
    model, images = tiny().eval(), torch.randn(2, 3, 64, 64)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(float(model.losses(images, TARGETS)["local"].detach()))
    assert drawn[0] == drawn[1] != drawn[2]


def test_saliency_changes_the_target_and_not_the_tags() -> None:
    model, images = tiny().eval(), torch.randn(2, 3, 64, 64)
    found = {}
    for transfer, saliency in (("soft", None), ("soft", 1.0), ("soft", 0.0), ("piecewise", 0.0)):
        model.transfer = transfer
        given = None if saliency is None else torch.full((2, 1, 64, 64), saliency)
        torch.manual_seed(1)
        found[transfer, saliency] = model.losses(images, TARGETS, given)
    assert len({float(losses["local"]) for losses in found.values()}) == 1
    assert len({float(losses["transfer"]) for losses in found.values()}) == 4


def test_new_layers_learn_ten_times_as_fast() -> None:
    groups = build_optimizer(tiny(), build_config("l2g").optim, batch=1).param_groups
    factors = {group["lr_factor"]: sum(value.numel() for value in group["params"]) for group in groups}
    model = tiny()
    new = sum(
        value.numel()
        for name, value in model.named_parameters()
        if name.split(".")[1] in ("fc8", "f8_3", "f8_4", "f9")
    )
    assert factors[10.0] == new and set(factors) == {1.0, 10.0}


def test_an_official_checkpoint_gives_the_global_net_alone() -> None:
    model = tiny()
    before = {name: value.clone() for name, value in model.local_net.state_dict().items()}
    state = seeded_conv_state(official_shapes(model), None)
    assert "conv1a.weight" in state and "b4_1.bn_branch2b1.running_var" in state
    load_official(model, state)
    assert torch.equal(model.global_net.trunk.conv1a.weight, state["conv1a.weight"])
    assert all(torch.equal(before[name], value) for name, value in model.local_net.state_dict().items())
    del state["f9.weight"]
    with pytest.raises(WsssError, match="1 missing: f9.weight"):
        load_official(model, state)


def test_weights_of_a_classifier_start_both_nets(tmp_path: Path) -> None:
    trunk = {name: value + 0.25 for name, value in tiny().global_net.trunk.state_dict().items()}
    # what the literature starts from: a head on top, no counters of batches
    kept = {name: value for name, value in trunk.items() if not name.endswith("num_batches_tracked")}
    torch.save({**kept, "fc8.weight": torch.zeros(1000, 40, 1, 1)}, tmp_path / "res38_cls.pth")
    model = tiny(pretrained=str(tmp_path / "res38_cls.pth"))
    for net in (model.global_net, model.local_net):
        assert torch.equal(net.trunk.conv1a.weight, trunk["conv1a.weight"])
    assert not torch.equal(model.global_net.fc8.weight, model.local_net.fc8.weight)
    del kept["b7.conv_branch1.weight"]
    torch.save(kept, tmp_path / "half.pth")
    with pytest.raises(WsssError, match="b7.conv_branch1.weight"):
        tiny(pretrained=str(tmp_path / "half.pth"))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"backbone": "deit_small_patch16_224"}, "ResNet-38"),
        ({"pretrained": True}, "--weights"),
        ({"transfer": "softt"}, "soft"),
        ({"view_size": 72}, "do not fit"),
        ({"view": 3}, "views"),
    ],
)
def test_wrong_arguments_say_what_is_meant(arguments: dict[str, object], hint: str) -> None:
    call: dict[str, object] = {"num_classes": 5, "backbone": TINY, "img_size": 64, **arguments}
    with pytest.raises(UsageError, match=hint):
        create_model("l2g", **call)  # type: ignore[arg-type]


def test_defaults_are_those_of_the_script_for_voc() -> None:
    assert method_options("l2g") == {
        "views": 6,
        "view_size": 0,
        "corners": True,
        "transfer": "soft",
        "background_threshold": 0.001,
        "background_target": "binary",
        "weight": 10.0,
        "freeze_stem": True,
    }
    assert tiny(img_size=448).view_size == 320


def test_peaks_are_one_and_what_is_negative_is_nothing() -> None:
    maps = np.zeros((2, 3, 4, 5), np.float32)
    maps[:, 0] = -1
    maps[0, 0, 1, 1] = 3
    maps[:, 1] = -2
    merged = merge_passes([maps], (0, 1), size=(32, 40), rule=MapRule("bicubic", "peak"))
    assert merged[0].max() == pytest.approx(1) and merged[0].min() == 0
    # a class that is nowhere is not stretched to fill the image
    assert not merged[1].any()
