"""The methods: localizers trained from image-level tags, segmenters and an affinity net trained from masks.

``create_model`` builds one by name; each has ``losses``, one of ``localize``, ``segment`` and ``affinity``,
and loads its official state dict.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from wsss_rt.errors import UsageError, nearest
from wsss_rt.training.models.acr import ACR
from wsss_rt.training.models.base import Localization, Localizer, Method, load_official, official_shapes
from wsss_rt.training.models.conv_head import ConvHead
from wsss_rt.training.models.conv_method import ConvMethod
from wsss_rt.training.models.l2g import L2G
from wsss_rt.training.models.mctformer import MCTformerV1, MCTformerV2
from wsss_rt.training.models.mctformer_plus import MCTformerPlus
from wsss_rt.training.models.psa import PSA
from wsss_rt.training.models.resnet38d import build_conv_backbone
from wsss_rt.training.models.segmenter import Segmenter
from wsss_rt.training.models.segvit import SegViT
from wsss_rt.training.models.segvit_shrunk import SegViTShrunk
from wsss_rt.training.models.token_refinement import TokenRefinement
from wsss_rt.training.models.trunk import build_backbone, start_from_backbone
from wsss_rt.training.models.ts_cam import TSCAM
from wsss_rt.training.models.vit_method import ViTMethod

__all__ = [
    "METHODS",
    "SEGMENTERS",
    "Localization",
    "Localizer",
    "Method",
    "Segmenter",
    "create_model",
    "load_official",
    "method_options",
    "official_shapes",
]

DEFAULT_BACKBONE = "deit_small_patch16_224"
METHODS: dict[str, type[ViTMethod] | type[ConvMethod]] = {
    "mctformer-v1": MCTformerV1,
    "acr": ACR,
    "mctformer-v2": MCTformerV2,
    "token-refinement": TokenRefinement,
    "mctformer-plus": MCTformerPlus,
    "ts-cam": TSCAM,
    "segvit": SegViT,
    "segvit-shrunk": SegViTShrunk,
    "conv-head": ConvHead,
    "l2g": L2G,
    "psa": PSA,
}
#: Those of them that learn from masks.
SEGMENTERS = frozenset(name for name, method in METHODS.items() if issubclass(method, Segmenter))
_BUILT_IN = {"self", "backbone", "trunk", "num_classes", "img_size", "patch_size", "options"}


def create_model(
    name: str,
    *,
    num_classes: int,
    img_size: int | None = None,
    backbone: str = "",
    pretrained: bool | str | Path = False,
    drop_path: float = 0.1,
    **options: Any,
) -> Any:
    """Build a method on its backbone.

    Args:
        name: one of :data:`METHODS`.
        num_classes: C, without background.
        img_size: side in pixels of the square training image, which fixes a ViT's stored position grid; the
            backbone's own where None.
        backbone: a ViT of timm with learned positions and plain blocks, or one of ours (``backbones``); for
            ``l2g`` and ``psa`` a ResNet-38d (``resnet38d``). Empty takes the official one.
        pretrained: True downloads the backbone's weights through timm; a path reads them from a local file.
            Its single class token and that token's position are then repeated for every class.
        drop_path: stochastic depth of the last block while training, rising linearly from 0; a ResNet-38d has
            none.
        options: of the method, as the literature names them, with the official defaults.

    Returns:
        A :class:`Localizer`, a :class:`Segmenter` or :class:`PSA` in training mode, on the CPU.

    Raises:
        UsageError: unknown method, backbone, option or value.
        WsssError: pretrained weights cannot be had.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}", fix=nearest(name, METHODS))
    method = METHODS[name]
    # an affinity net knows none
    if num_classes < 1 and method.kind != "affinity":
        raise UsageError(f"num_classes is {num_classes}, but a {method.kind} needs at least one class")
    known = method_options(name)
    for option in options:
        if option not in known:
            raise UsageError(f"{name} has no option {option!r}", fix=nearest(option, known))
    if issubclass(method, ConvMethod):
        conv = build_conv_backbone(backbone or method.default_backbone, pretrained=pretrained)
        side = img_size if img_size is not None else method.default_img_size
        return method(conv, num_classes=num_classes, img_size=side, **options)
    backbone = backbone or DEFAULT_BACKBONE
    trunk = build_backbone(backbone, pretrained=pretrained, drop_path=drop_path)
    side = img_size if img_size is not None else int(trunk.patch_embed.img_size[0])
    patch = int(trunk.patch_embed.patch_size[0])
    if side < patch:
        raise UsageError(f"img_size {side} is smaller than the {patch} px patch of {backbone}")
    model = method(trunk, num_classes=num_classes, img_size=side, **options)
    if pretrained or getattr(trunk, "has_start", False):
        # untrained class tokens differ at random instead: equal ones would take steps to part
        start_from_backbone(model, trunk, class_token=bool(pretrained))
    return model


def method_options(name: str) -> dict[str, Any]:
    """Options of a method and their official defaults."""
    found: dict[str, Any] = {}
    for cls in reversed(METHODS[name].__mro__):
        if "__init__" in vars(cls) and issubclass(cls, Method):
            parameters = inspect.signature(vars(cls)["__init__"]).parameters
            found |= {key: value.default for key, value in parameters.items() if key not in _BUILT_IN}
    return found
