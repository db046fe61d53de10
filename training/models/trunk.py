"""Backbones from timm: building, checking that their shape fits, starting from their pretrained weights."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from torch import nn

from wsss_rt.errors import UsageError, WsssError, nearest
from wsss_rt.training.models.attention import check_blocks
from wsss_rt.training.models.backbones import OWN_BACKBONES
from wsss_rt.training.models.hybrid import check_hybrid, without_size_checks
from wsss_rt.training.models.position import resize_positions
from wsss_rt.training.models.vit_method import ViTMethod


def build_backbone(name: str, *, pretrained: bool | str | Path = False, drop_path: float = 0.0) -> Any:
    """A timm VisionTransformer without a head, at its own image size.

    Args:
        name: timm's name.
        pretrained: True for timm's download (or its cache), a path for a local state dict or a run folder.
        drop_path: stochastic depth rate of the last block.

    Raises:
        UsageError: unknown name, or a backbone of another shape.
        WsssError: the weights cannot be had.
    """
    if not timm.is_model(name):
        raise UsageError(f"unknown backbone {name!r}", fix=nearest(name, _vit_names()))
    download = pretrained is True
    if download and name in OWN_BACKBONES:
        raise UsageError(f"there are no pretrained weights for {name}", fix="train it without --pretrained")
    try:
        backbone = timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=drop_path)
    except TypeError as error:
        raise UsageError(
            f"{name} cannot carry a localizer", why=str(error), fix="take a plain ViT or DeiT"
        ) from error
    _check_shape(name, backbone)
    backbone.patch_embed = without_size_checks(backbone.patch_embed)
    if download:
        backbone.load_state_dict(_download(name), strict=True)
    elif pretrained and not isinstance(pretrained, bool):
        path = Path(pretrained)
        (_load_trained if path.is_dir() else _load_file)(backbone, path)
    return backbone


def start_from_backbone(model: ViTMethod, backbone: Any, *, class_token: bool) -> None:
    """Take over what the backbone says of positions and, where it has been trained, of its class token.

    Args:
        model: changed in place. Patch positions are resized.
        backbone: timm ViT with a start of its own: pretrained weights, or positions that are not noise.
        class_token: repeat the class token and its position for every class token of the model.
    """
    side = model.stored_side
    with torch.no_grad():
        of_classes, of_patches = model.stored_positions()
        patches = int(backbone.patch_embed.num_patches)
        own = backbone.pos_embed[:, -patches:]
        # square on square: equal grids come back untouched
        of_patches[:] = resize_positions(own, (side, side), image_size=(side, side), offset=0.0)
        own_tokens = getattr(model, "cls_token", None)
        if class_token and own_tokens is not None and getattr(backbone, "cls_token", None) is not None:
            own_tokens[:] = backbone.cls_token[:, :1]
            if backbone.pos_embed.shape[1] > patches:
                of_classes[:] = backbone.pos_embed[:, :1]


def _check_shape(name: str, backbone: Any) -> None:
    reason: str | None = None
    if not all(
        hasattr(backbone, part) for part in ("patch_embed", "blocks", "norm", "pos_embed", "embed_dim")
    ):
        reason = "it is not a ViT with learned positions"
    elif backbone.pos_embed is None:
        reason = "it has no learned positions"
    elif not hasattr(backbone.patch_embed, "proj"):
        reason = "its patch embedding has no projection"
    elif not isinstance(getattr(backbone, "norm_pre", nn.Identity()), nn.Identity):
        reason = "it normalises tokens before the first block"
    else:
        reason = check_hybrid(backbone.patch_embed) or check_blocks(backbone.blocks)
    if reason:
        raise UsageError(f"{name} cannot carry a localizer", why=reason, fix="take a plain ViT or DeiT")


def _vit_names() -> list[str]:
    return [*timm.list_models("*vit*"), *timm.list_models("deit*")]


def _download(name: str) -> dict[str, torch.Tensor]:
    try:
        with _offline_where_unreachable():
            return dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())
    except Exception as error:  # timm, its hub client and urllib each have their own families of errors
        raise WsssError(
            f"cannot get the pretrained weights of {name}",
            why=f"no network, or nothing at the other end ({type(error).__name__})",
            fix="train without --pretrained, or give a local state dict: --weights FILE",
            code="no_pretrained",
        ) from error


@contextmanager
def _offline_where_unreachable() -> Iterator[None]:
    """Without a network the hub's client retries for a minute before it looks into its cache; spare that."""
    from huggingface_hub import constants

    previous = constants.HF_HUB_OFFLINE
    host = urlsplit(constants.ENDPOINT).hostname
    if not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = previous


def _load_file(backbone: Any, path: Path) -> None:
    from wsss_rt.training.checkpoints import read_state_dict

    state = {key: value for key, value in read_state_dict(path).items() if not key.startswith("head")}
    expected = backbone.state_dict()
    absent = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected or state[key].shape != expected[key].shape]
    wrong = absent + extra
    if wrong:
        raise WsssError(
            f"{path} does not hold the weights of this backbone",
            why=f"missing, extra or misshapen: {', '.join(wrong)}",
            fix="give the state dict of the timm model that --backbone names",
            code="state_dict",
        )
    backbone.load_state_dict(state)


def _load_trained(backbone: Any, folder: Path) -> None:
    """Take the backbone of a run, whatever its method: patch embedding, blocks, positions of patches."""
    from wsss_rt.training.checkpoints import load_run

    model, config = load_run(folder)
    kept = backbone.state_dict()
    wanted = [key for key in kept if key.startswith(("patch_embed.", "blocks."))]
    state = model.state_dict()
    wrong = [key for key in wanted if key not in state or state[key].shape != kept[key].shape]
    if wrong or not isinstance(model, ViTMethod):
        raise WsssError(
            f"the run {folder} does not hold this backbone",
            why=f"it is {config.method} on {config.model.get('backbone', 'another trunk')}; "
            f"missing or misshapen: {', '.join(wrong[:5]) or 'its blocks'}",
            fix="give --backbone the one that the run was trained with",
            code="state_dict",
        )
    kept |= {key: state[key] for key in wanted}
    kept |= {key: state[key] for key in kept if key.startswith("norm.") and key in state}
    patches = int(backbone.patch_embed.num_patches)
    side = int(patches**0.5)
    of_patches = model.stored_positions()[1].detach()
    kept["pos_embed"] = backbone.pos_embed.detach().clone()
    kept["pos_embed"][:, -patches:] = resize_positions(
        of_patches, (side, side), image_size=(side, side), offset=0.0
    )
    backbone.load_state_dict(kept)
