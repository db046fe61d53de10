"""Small ViTs of our own, registered in timm so that ``backbone=`` takes their names.

Importing this module registers them. They have no pretrained weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from wsss_rt.training.models.initialisation import mimetic_start, sine_positions

__all__ = ["OWN_BACKBONES", "ConvStem", "ConvStemEmbed"]


class ResidualConv(nn.Module):
    """Two 3x3 convolutions with GroupNorm beside an identity: local features that attention cannot blur."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last_norm = nn.GroupNorm(channels // 16, channels)
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(channels // 16, channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            last_norm,
        )
        # starts as the identity, which trains steadily without warm-up
        nn.init.zeros_(last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x + self.body(x))


class HalvingConv(nn.Conv2d):
    """3x3 convolution of stride 2 that rounds an odd size down, padded at the top and the left only.

    Even sizes never reach the other padding, so for them it is the usual ``padding=1``. Cutting the image to
    a multiple instead would tie an exported graph to such sizes.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 3, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (1, 0, 1, 0)))


class ConvStem(nn.Sequential):
    """Overlapping 3x3 convolutions in place of a patch projection; total stride 2 ** len(widths).

    Takes (B, 3, H, W), gives (B, D, H // stride, W // stride): like a patch projection, it rounds down.
    GroupNorm instead of BatchNorm: an image's features must not depend on its batch.

    Args:
        embed_dim: D.
        widths: channels after each halving.
        residuals: residual blocks after each halving.
    """

    def __init__(self, embed_dim: int, *, widths: tuple[int, ...], residuals: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for width, count in zip(widths, residuals, strict=True):
            layers += [
                HalvingConv(channels, width),
                nn.GroupNorm(width // 16, width),
                nn.GELU(),
                *(ResidualConv(width) for _ in range(count)),
            ]
            channels = width
        layers.append(nn.Conv2d(channels, embed_dim, 1))
        super().__init__(*layers)


class ConvStemEmbed(nn.Module):
    """The patch embedding that timm's VisionTransformer expects, around a :class:`ConvStem`."""

    # a residual block each at stride 4 and 8: a receptive field of about 60 px before any attention
    widths: tuple[int, ...] = (32, 64, 96)
    residuals: tuple[int, ...] = (0, 1, 1)

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = ConvStem(embed_dim, widths=self.widths, residuals=self.residuals)
        self.norm = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


def _vit(kwargs: dict[str, Any], **arguments: Any) -> VisionTransformer:
    # these belong to timm's weight loading, and nothing is loaded here
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(name, None)
    return VisionTransformer(**{**arguments, **kwargs})


@register_model
def vit_scene_hybrid8_160(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT for 160 px: residual convolutions to 8 px tokens, 128 wide, 3 blocks; 1 M parameters."""
    model: Any = _vit(
        kwargs, img_size=160, patch_size=8, embed_dim=128, depth=3, num_heads=4, embed_layer=ConvStemEmbed
    )
    mimetic_start(model.blocks)
    with torch.no_grad():
        patches = model.patch_embed.num_patches
        # half the scale of what the stem gives: enough to tell neighbours, too little to hide contents
        model.pos_embed[:, -patches:] = 0.5 * sine_positions(math.isqrt(patches), model.embed_dim)
    model.has_start = True
    return model


@register_model
def vit_test_tiny(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT of 40 k parameters for tests: 64 px, 8 px patches, 32 wide, 3 blocks."""
    return _vit(kwargs, img_size=64, patch_size=8, embed_dim=32, depth=3, num_heads=2)


OWN_BACKBONES = frozenset({"vit_scene_hybrid8_160", "vit_test_tiny"})
