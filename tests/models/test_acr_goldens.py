"""ACR against numbers that the official code gave, in double precision where such numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from tests.models.compare import relative_error
from tests.models.seeded import seeded_images, seeded_state
from wsss_rt.training.models import (
    Localization,
    Localizer,
    create_model,
    load_official,
    method_options,
    official_shapes,
)

HYBRID = "vit_base_r50_s16_384"
CLASSES = 20
PRESENT = (2, 7, 14)
IMAGE_SEEDS = {"64x64": 11, "384x384": 13}
# which options give which golden map
MAPS = {
    "grad_s10": ("grad", 10),
    "cam_grad_s10": ("cam_grad", 10),
    "grad_s_s10": ("grad_s", 10),
    "cam_grad_s_s9": ("cam_grad_s", 9),
}


@cache
def built(backbone: str) -> Localizer:
    return create_model("acr", num_classes=CLASSES, backbone=backbone).eval()


def official_model(backbone: str, scale: float, dtype: torch.dtype = torch.float32) -> Localizer:
    """One model of each backbone serves all tests, with new weights: it is large."""
    model = built(backbone).to(dtype)
    load_official(model, seeded_state(official_shapes(model), scale))
    return model


def pixels(size: str) -> torch.Tensor:
    height, width = map(int, size.split("x"))
    return seeded_images(IMAGE_SEEDS[size], height, width)


def errors(extras: Mapping[str, torch.Tensor], golden: Mapping[str, np.ndarray]) -> dict[str, float]:  # type: ignore[type-arg]
    return {name: relative_error(extras[name].numpy(), golden[name]) for name in golden}


def worst(found: Mapping[str, float]) -> tuple[str, float]:
    name = max(found, key=lambda key: found[key])
    print(f"worst of {len(found)}: {name} {found[name]:.2e}")
    return name, found[name]


def localized(model: Localizer, images: torch.Tensor, name: str, *, affinity: bool) -> Localization:
    """What the exported graph gives for the options behind a golden's name."""
    model.gradient, model.start_layer = MAPS[name]
    model.affinity = affinity
    return model.localize(images)


def map_errors(
    model: Localizer,
    images: torch.Tensor,
    golden: Mapping[str, np.ndarray],  # type: ignore[type-arg]
    names: tuple[str, ...],
) -> dict[str, float]:
    """Of the closed form's maps, before and after refinement."""
    found = {}
    for name in names:
        for affinity in (False, True):
            maps = localized(model, images, name, affinity=affinity).maps[0].flatten(1).numpy()
            for index in PRESENT:
                key = f"getam_{name}_c{index}{'_aff' * affinity}"
                found[key] = relative_error(maps[index], golden[key])
    return found


def test_official_defaults() -> None:
    assert method_options("acr") == {
        "start_layer": 9,
        "gradient": "cam_grad_s",
        "affinity": False,
        "alpha": 100.0,
        "view": "flip",
    }


@pytest.mark.large
@torch.no_grad()
def test_deit_equals_the_official_one(goldens_dir: Path) -> None:
    with np.load(goldens_dir / "acr" / "acr_deit_s008_64x64.npz", allow_pickle=False) as file:
        golden = dict(file)
    model = official_model("deit_base_patch16_384", 0.08)
    out = model.localize(pixels("64x64"), extras=True)
    assert worst(errors(out.extras, golden))[1] < 3e-5
    assert worst(map_errors(model, pixels("64x64"), golden, ("grad_s10",)))[1] < 3e-5


def test_checkpoints_of_other_backbones_may_hold_what_nothing_reads() -> None:
    model = create_model("acr", num_classes=3, backbone="vit_test_tiny")
    state = seeded_state(official_shapes(model), 0.08)
    unused = ("model.bkg_token", "model.head.bias", "act_postprocess1.3.weight")
    load_official(model, state | {f"pretrained.{name}": torch.zeros(2) for name in unused})
    assert torch.equal(model.get_parameter("head.weight"), state["cls_head.weight"])
    assert torch.equal(model.get_parameter("cls_token"), state["pretrained.model.cls_token"])


@pytest.mark.large
def test_keys_and_shapes_of_the_hybrid_are_the_official_ones(goldens_dir: Path) -> None:
    lines = (goldens_dir / "acr" / "state_keys_hybrid.txt").read_text().splitlines()
    official = dict(line.split(" ", 1) for line in lines)
    assert {key: str(shape) for key, shape in official_shapes(built(HYBRID)).items()} == official


@pytest.mark.large
@pytest.mark.parametrize("scale", ["s002", "s008"])
@torch.no_grad()
def test_hybrid_equals_the_official_one_in_double_precision(goldens_dir: Path, scale: str) -> None:
    with np.load(goldens_dir / "acr" / "acr_hybrid_float64.npz", allow_pickle=False) as file:
        prefix = f"{scale}_64_"
        golden = {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}
    model = official_model(HYBRID, int(scale[1:]) / 100, torch.float64)
    images = pixels("64x64").double()
    # attention and maps were stored in single precision
    assert worst(errors(model.localize(images, extras=True).extras, golden))[1] < 1e-6
    assert worst(map_errors(model, images, golden, tuple(MAPS)))[1] < 1e-6


@pytest.mark.large
@torch.no_grad()
def test_hybrid_in_single_precision_stays_within_the_official_noise(goldens_dir: Path) -> None:
    """At the official size, and with the published script's options."""
    with np.load(goldens_dir / "acr" / "acr_hybrid_float64.npz", allow_pickle=False) as file:
        golden = {name: file[f"s008_384_{name}"] for name in ("logits_cls", "getam_grad_s10_c7_aff")}
    out = localized(official_model(HYBRID, 0.08), pixels("384x384"), "grad_s10", affinity=True)
    assert relative_error(out.scores.numpy(), golden["logits_cls"]) < 2e-4
    assert relative_error(out.maps[0, 7].flatten().numpy(), golden["getam_grad_s10_c7_aff"]) < 2e-4


@pytest.mark.large
@torch.no_grad()
def test_every_intermediate_equals_the_official_one(shared_dir: Path) -> None:
    with np.load(shared_dir / "goldens" / "acr" / "acr_hybrid_s008_64x64.npz", allow_pickle=False) as file:
        golden = dict(file)
    model, images = official_model(HYBRID, 0.08), pixels("64x64")
    assert relative_error(images.numpy(), golden.pop("input")) < 1e-6
    generated = {name: golden.pop(name) for name in list(golden) if name.startswith("e2e_")}
    found = errors(model.localize(images, extras=True).extras, golden)
    worst(found)
    # both are single precision, and the peaky weights double the convolutions' noise
    assert {name: error for name, error in found.items() if error > 6e-4} == {}

    # the official inference: image and mirror image, each resized, summed, min-max with an absolute epsilon
    pair = torch.cat((images, images.flip(-1)))
    maps = localized(model, pair, "grad_s10", affinity=True).maps
    large = interpolate(maps, size=(50, 75), mode="bilinear", align_corners=True)
    summed = (large[0] + large[1].flip(-1))[list(PRESENT)]
    assert relative_error(summed.numpy(), generated["e2e_sum_grad_s10_aff"]) < 2e-4
    low, high = summed.amin((1, 2), keepdim=True), summed.amax((1, 2), keepdim=True)
    normed = (summed - low) / (high - low + 1e-6)
    assert relative_error(normed.numpy(), generated["e2e_norm_grad_s10_aff"]) < 2e-3


@pytest.mark.large
def test_losses_gradients_and_three_steps_of_training(goldens_dir: Path) -> None:
    folder = goldens_dir / "acr"
    with np.load(folder / "acr_losses_s002.npz", allow_pickle=False) as file:
        golden = dict(file)
    with np.load(folder / "acr_opt_s002_float64.npz", allow_pickle=False) as file:
        after = dict(file)
    model = official_model(HYBRID, 0.02, torch.float64)
    model.alpha = 125.0
    wide = seeded_images(23, 96, 96).double()
    with torch.no_grad():
        check_losses(model.losses(wide, multi_hot([0, 19])), golden, "flip96")

    images = torch.cat([seeded_images(seed, 64, 64) for seed in (21, 22)]).double()
    targets = multi_hot([2, 7], [14])
    # weight decay landed in the momentum's place, and the power of the decaying rate is the 0.9
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=5e-4)
    for step in range(3):
        losses = model.losses(images, targets)
        total = sum(losses.values(), torch.zeros(()))
        optimizer.zero_grad()
        total.backward()
        if step == 0:
            check_losses(losses, golden, "flip64")
            check_gradients(model, golden)
        assert abs(total.item() / after[f"step{step}_loss"] - 1) < 1e-4
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 26450) ** 0.9
        optimizer.step()
        bias = model.get_parameter("head.bias").detach().numpy()
        assert relative_error(bias, after[f"step{step}_cls_head.bias"]) < 1e-4


def multi_hot(*labels: list[int]) -> torch.Tensor:
    return torch.stack([torch.eye(CLASSES)[of_image].sum(dim=0) for of_image in labels])


def check_losses(
    losses: Mapping[str, torch.Tensor],
    golden: Mapping[str, np.ndarray],  # type: ignore[type-arg]
    case: str,
) -> None:
    ours = {
        "cls_loss_1": losses["class"],
        "cls_loss_2": losses["class_view"],
        "cls_align_loss": losses["activation"] / 125,
        "aff_align_loss": losses["affinity"] / 125,
        "loss": sum(losses.values(), torch.zeros(())),
    }
    found = {name: abs(value.item() / float(golden[f"{case}_{name}"]) - 1) for name, value in ours.items()}
    assert worst(found)[1] < 1e-4


def check_gradients(model: Localizer, golden: Mapping[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    trained = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    official = {f"cls_{name}" if name.startswith("head.") else f"pretrained.model.{name}" for name in trained}
    assert set(official_shapes(model)) - official == set(golden["flip64_params_without_grad"].tolist())
    prefix = "flip64_gradnorm_"
    norms = {}
    for key in (key.removeprefix(prefix) for key in golden if key.startswith(prefix)):
        ours = trained[key.removeprefix("pretrained.model.").replace("cls_head.", "head.")]
        norms[key] = abs(float(ours.norm()) / float(golden[prefix + key]) - 1)
    assert worst(norms)[1] < 1e-3
    for key in ("head.bias", "blocks.11.attn.qkv.bias"):
        of_golden = golden[f"flip64_grad_{key.replace('head', 'cls_head')}"]
        assert relative_error(trained[key].numpy(), of_golden) < 2e-3
