"""Views, the permutation that undoes them, and the losses that compare attention across them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wsss_rt.errors import UsageError
from wsss_rt.training.models import Localizer, create_model
from wsss_rt.training.models.consistency import VIEWS, View, consistency, realign

GRIDS = [(3, 5), (4, 4), (1, 6), (5, 2)]
EVERY_VIEW = {"identity": View(), **VIEWS}


@pytest.mark.parametrize("name", EVERY_VIEW)
@pytest.mark.parametrize("grid", GRIDS)
def test_places_find_every_patch_of_the_image_in_its_view(name: str, grid: tuple[int, int]) -> None:
    view, patch = EVERY_VIEW[name], 4
    number = torch.arange(grid[0] * grid[1])
    image = number.reshape(grid).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    in_view = view.apply(image)[::patch, ::patch].flatten()
    places = view.places(grid)
    assert torch.equal(in_view[places], number)
    # and the other way round: the inverse permutation gives what the view showed
    assert torch.equal(number[places.argsort()], in_view)


def test_the_eight_views_differ() -> None:
    square = torch.arange(9).reshape(3, 3)
    assert len({tuple(view.apply(square).flatten().tolist()) for view in EVERY_VIEW.values()}) == 8


def test_the_official_view_reverses_columns_within_each_row() -> None:
    rows, columns = 3, 5
    expected = [row * columns + columns - 1 - column for row in range(rows) for column in range(columns)]
    assert VIEWS["flip"].places((rows, columns)).tolist() == expected


@pytest.mark.parametrize("name", EVERY_VIEW)
@pytest.mark.parametrize("class_tokens", [1, 3])
def test_attention_that_follows_its_image_costs_nothing(name: str, class_tokens: int) -> None:
    view, grid = EVERY_VIEW[name], (3, 5)
    count = class_tokens + grid[0] * grid[1]
    attention = torch.rand(2, count, count)
    order = view.places(grid).argsort() + class_tokens
    tokens = torch.cat((torch.arange(class_tokens), order))
    moved = attention[:, tokens][:, :, tokens]
    rows, pairs = realign(moved, view, grid, class_tokens=class_tokens)
    assert torch.equal(rows, attention[:, :class_tokens, class_tokens:])
    assert torch.equal(pairs, attention[:, class_tokens:, class_tokens:])
    losses = consistency([attention] * 2, [moved] * 2, view, grid, class_tokens=class_tokens)
    assert [loss.item() for loss in losses] == [0, 0]
    if name != "identity":
        assert all(loss > 0 for loss in consistency([attention], [attention], view, grid))


def symmetric_model(name: str, **options: object) -> Localizer:
    """A model that cannot tell views apart: symmetric patch filters, and no positions of patches."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, backbone="vit_test_tiny", **options).eval()  # type: ignore[arg-type]
    weight = model.patch_embed.proj.weight
    with torch.no_grad():
        weight.copy_(torch.stack([view.apply(weight) for view in EVERY_VIEW.values()]).mean(dim=0))
        model.stored_positions()[1].zero_()
        # attention that differs from token to token
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)
    return model


def losses_of(model: Localizer) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return model.losses(torch.randn(2, 3, 32, 48, generator=generator), torch.eye(4)[:2])


@pytest.mark.parametrize("view", VIEWS)
def test_an_equivariant_model_has_no_consistency_loss(view: str) -> None:
    model = symmetric_model("acr", view=view)
    losses = losses_of(model)
    assert set(losses) == {"class", "class_view", "activation", "affinity"}
    # rounding, which peaky attention multiplies
    assert losses["activation"] < 1e-2 and losses["affinity"] < 1e-2
    assert torch.isclose(losses["class"], losses["class_view"], rtol=2e-3)
    with torch.no_grad():
        model.stored_positions()[1].normal_()
    losses = losses_of(model)
    assert losses["activation"] > 1 and losses["affinity"] > 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mctformer-v1", {}),
        ("mctformer-v2", {}),
        ("mctformer-plus", {}),
        ("ts-cam", {}),
        ("token-refinement", {"loss": "soft_margin"}),
        ("token-refinement", {"loss": "soft_margin", "stage": "tpsm"}),
    ],
)
def test_it_is_an_option_of_the_other_methods(name: str, options: dict[str, Any]) -> None:
    plain = losses_of(symmetric_model(name, **options))
    model = symmetric_model(name, consistency="acr", alpha=50.0, **options)
    losses = losses_of(model)
    views = {f"{key}_view" for key in plain}
    assert set(losses) == {*plain, *views, "activation", "affinity"}
    for key, loss in plain.items():
        assert torch.isclose(losses[key], loss, rtol=1e-5)
    # class tokens cannot tell the view; the patch head's 3x3 filters can
    for key in {"class", "tpsm"} & set(plain):
        assert torch.isclose(losses[f"{key}_view"], losses[key], rtol=2e-3)
    assert losses["activation"] < 1e-2 and losses["affinity"] < 1e-2
    with torch.no_grad():
        model.stored_positions()[1].normal_()
    losses = losses_of(model)
    (losses["activation"] + losses["affinity"]).backward()
    assert losses["activation"] > 1 and model.patch_embed.proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("name", "option", "hint"),
    [
        ("acr", {"view": "flop"}, "flip"),
        ("mctformer-v2", {"consistency": "arc"}, "'acr'"),
        ("token-refinement", {"consistency": "acr", "stage": "cam"}, "leave out consistency"),
    ],
)
def test_unknown_names_say_what_is_meant(name: str, option: dict[str, str], hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        create_model(name, num_classes=4, backbone="vit_test_tiny", **option)
