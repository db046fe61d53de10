"""The convolutional trunk of timm's R50+ViT hybrids, for any image size and in one traceable graph.

Two things differ from timm. Weights are standardised as in the methods' official code, with 1e-5 added to
the standard deviation, not 1e-8 to the variance; between the two, logits move by about 1e-3. And padding
does not depend on the size: where a size is a multiple of the stride, TensorFlow's "SAME" pads
``kernel - stride``, so that is what we pad everywhere, and other sizes round down as they do in a patch
projection.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import HybridEmbed, StdConv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

_EPS = 1e-5


class StandardizedConv(nn.Conv2d):
    """Convolution whose weight has mean 0 and standard deviation 1 per output channel (Qiao et al. 2019).

    Takes (B, C, H, W), gives (B, D, H // stride, W // stride). Over constant weights the standardisation is a
    constant, which inference engines fold when they build.
    """

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        spread = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        padded = _pad(x, self.kernel_size[0], self.stride[0], value=0.0)
        return nn.functional.conv2d(padded, centred / (spread + _EPS), self.bias, self.stride)


class FlooringMaxPool(nn.Module):
    """3x3 maximum of stride 2; (B, C, H, W) to (B, C, H // 2, W // 2)."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(_pad(x, 3, 2, value=-torch.inf), 3, 2)


class HybridPatches(nn.Module):
    """Stands in for timm's ``HybridEmbed``, with the same state dict and sizes in pixels of the image.

    Attributes:
        backbone: (B, 3, H, W) to features (B, F, H // stride, W // stride).
        proj: features to (B, D, rows, columns).
        patch_size: pixels per token, trunk and projection together.
    """

    def __init__(self, embed: HybridEmbed) -> None:
        super().__init__()
        self.backbone = _converted(embed.backbone)
        self.proj = embed.proj
        self.norm = nn.Identity()
        self.img_size: tuple[int, int] = embed.img_size
        self.grid_size: tuple[int, int] = embed.grid_size
        self.num_patches: int = embed.num_patches
        self.patch_size = (self.img_size[0] // self.grid_size[0], self.img_size[1] // self.grid_size[1])

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.proj(self.backbone(images)).flatten(2).transpose(1, 2))


def check_hybrid(embed: Any) -> str | None:
    """Why this patch embedding can't be run here, or None; anything but a hybrid passes."""
    if not isinstance(embed, HybridEmbed):
        return None
    if any(isinstance(module, nn.BatchNorm2d) for module in embed.backbone.modules()):
        return "its convolutions normalise over the batch"
    for module in embed.backbone.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module, StdConv2dSame):
            return "its convolutions are not weight-standardised ones with 'SAME' padding"
        if isinstance(module, StdConv2dSame) and (module.groups != 1 or module.dilation != (1, 1)):
            return "its convolutions are grouped or dilated"
    return None


def without_size_checks(embed: Any) -> Any:
    """A hybrid's patch embedding as :class:`HybridPatches`; any other as it is."""
    return HybridPatches(embed) if isinstance(embed, HybridEmbed) else embed


def _converted(module: nn.Module) -> nn.Module:
    """Replace convolutions and pooling below ``module``, which is changed in place."""
    for name, child in module.named_children():
        if isinstance(child, StdConv2dSame):
            own = StandardizedConv(
                child.in_channels,
                child.out_channels,
                child.kernel_size[0],
                stride=child.stride[0],
                bias=child.bias is not None,
                device="meta",
            )
            own.weight, own.bias = child.weight, child.bias
            setattr(module, name, own)
        elif isinstance(child, MaxPool2dSame):
            setattr(module, name, FlooringMaxPool())
        else:
            _converted(child)
    return module


def _pad(x: Tensor, kernel: int, stride: int, *, value: float) -> Tensor:
    """Pad ``kernel - stride`` pixels per axis, the larger half at the end."""
    total = kernel - stride
    if total < 0:
        # a 1x1 kernel skips the last pixel of even sizes, and must not round odd ones up beside its siblings
        return x[..., :total, :total]
    before, after = total // 2, total - total // 2
    return nn.functional.pad(x, (before, after, before, after), value=value)
