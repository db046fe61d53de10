"""The wide ResNet-38 ("A1", Wu et al. 2016) with dilation, as PSA and L2G run it; registered in timm.

Pre-activation blocks, stride 8, batch norms that never learn: their statistics and factors are the pretrained
ones, and weights of one's own begin with norms that change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional

from wsss_rt.errors import UsageError, WsssError, nearest

__all__ = ["CONV_BACKBONES", "FrozenBatchNorm", "ResNet38d", "Taps", "build_conv_backbone"]

#: Official blocks per stage b2 to b5, and channels of conv1a, b2 to b7.
_DEPTHS, _WIDTHS = (3, 3, 6, 3), (64, 128, 256, 512, 1024, 2048, 4096)
_STEM = ("conv1a", "b2")


@dataclass(frozen=True)
class Taps:
    """Features of an image at a stride of 8, sizes rounded up.

    Attributes:
        conv4: (B, C4, h, w), normed and rectified at the entry of b5; 512 channels.
        conv5: (B, C5, h, w), the same at the entry of b6; 1,024 channels.
        conv6: (B, C6, h, w), normed and rectified behind b7; 4,096 channels.
    """

    conv4: Tensor
    conv5: Tensor
    conv6: Tensor


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics and factors stay what they are, while training too."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        return super().train(False)


class WideBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(
        self, channels: int, middle: int, width: int, *, stride: int = 1, dilations: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        first, second = dilations
        self.bn_branch2a = FrozenBatchNorm(channels)
        self.conv_branch2a = nn.Conv2d(
            channels, middle, 3, stride=stride, padding=first, dilation=first, bias=False
        )
        self.bn_branch2b1 = FrozenBatchNorm(middle)
        self.conv_branch2b1 = nn.Conv2d(middle, width, 3, padding=second, dilation=second, bias=False)
        if channels != width or stride != 1:
            self.conv_branch1 = nn.Conv2d(channels, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its input normed and rectified."""
        entry = functional.relu(self.bn_branch2a(x))
        shortcut = self.conv_branch1(entry) if hasattr(self, "conv_branch1") else x
        inner = functional.relu(self.bn_branch2b1(self.conv_branch2a(entry)))
        return shortcut + self.conv_branch2b1(inner), entry


class Bottleneck(nn.Module):
    """1x1, dilated 3x3 and 1x1 convolutions beside a 1x1 shortcut."""

    def __init__(self, channels: int, width: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        narrow, wide = width // 4, width // 2
        self.bn_branch2a = FrozenBatchNorm(channels)
        self.conv_branch2a = nn.Conv2d(channels, narrow, 1, bias=False)
        self.bn_branch2b1 = FrozenBatchNorm(narrow)
        self.conv_branch2b1 = nn.Conv2d(narrow, wide, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2 = FrozenBatchNorm(wide)
        self.conv_branch2b2 = nn.Conv2d(wide, width, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(channels, width, 1, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and its input normed and rectified."""
        entry = functional.relu(self.bn_branch2a(x))
        inner = self.dropout(functional.relu(self.bn_branch2b1(self.conv_branch2a(entry))))
        inner = self.dropout(functional.relu(self.bn_branch2b2(self.conv_branch2b1(inner))))
        return self.conv_branch1(entry) + self.conv_branch2b2(inner), entry


class ResNet38d(nn.Module):
    """The trunk; names of modules are those of the official checkpoints.

    Args:
        widths: channels of conv1a, b2, b3, b4, b5, b6, b7.
        depths: blocks of b2, b3, b4, b5.
        dropout: of b6 and b7, whole channels, while training.
    """

    def __init__(
        self,
        widths: Sequence[int] = _WIDTHS,
        depths: Sequence[int] = _DEPTHS,
        dropout: tuple[float, float] = (0.3, 0.5),
    ) -> None:
        super().__init__()
        stem, *stages, sixth, seventh = widths
        self.conv1a = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        channels, self._names = stem, list[str]()
        for number, (width, depth) in enumerate(zip(stages, depths, strict=True), start=2):
            last = number == 5
            # b5 keeps the resolution by dilation, and is half as wide inside
            middle = width // 2 if last else width
            for index in range(depth):
                name = f"b{number}" + (f"_{index}" if index else "")
                dilations = ((2 if index else 1), 2) if last else (1, 1)
                stride = 1 if index or last else 2
                self.add_module(name, WideBlock(channels, middle, width, stride=stride, dilations=dilations))
                self._names.append(name)
                channels = width
        self.b6 = Bottleneck(channels, sixth, dilation=4, dropout=dropout[0])
        self.b7 = Bottleneck(sixth, seventh, dilation=4, dropout=dropout[1])
        self.bn7 = FrozenBatchNorm(seventh)
        #: channels of :class:`Taps`
        self.tap_widths = (stages[2], stages[3], seventh)
        self._start()

    def forward(self, images: Tensor) -> Taps:
        """Features of (B, 3, H, W) normalised images of any size."""
        x = self.conv1a(images)
        conv4 = x
        for name in self._names:
            x, entry = self.get_submodule(name)(x)
            if name == "b5":
                conv4 = entry
        x, conv5 = self.b6(x)
        x, _ = self.b7(x)
        return Taps(conv4, conv5, functional.relu(self.bn7(x)))

    def freeze_stem(self) -> None:
        """conv1a and b2 stop learning, as in the official code."""
        for name, module in self.named_children():
            if name.split("_")[0] in _STEM:
                module.requires_grad_(False)

    def _start(self) -> None:
        """He's start; the last convolution of a branch is damped, or sums of 17 blocks would explode."""
        damped = 1 / math.sqrt(len(self._names) + 2)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                last = "conv_branch2b2" if name.startswith(("b6", "b7")) else "conv_branch2b1"
                if name.endswith(last):
                    module.weight.data.mul_(damped)


def build_conv_backbone(name: str, *, pretrained: bool | str | Path = False) -> ResNet38d:
    """A trunk of :data:`CONV_BACKBONES`.

    Args:
        name: its name.
        pretrained: a path reads a local state dict; there is nothing to download.

    Raises:
        UsageError: another backbone, or a download is asked for.
        WsssError: the weights cannot be read or do not fit.
    """
    if name not in CONV_BACKBONES:
        raise UsageError(
            f"{name} cannot carry this method",
            why="it reads features of a dilated ResNet-38",
            fix=nearest(name, CONV_BACKBONES),
        )
    if pretrained is True:
        raise UsageError(
            f"there are no weights of {name} to download", fix="give the official ones: --weights FILE"
        )
    trunk = CONV_BACKBONES[name]()
    if pretrained:
        _load_file(trunk, Path(pretrained))
    return trunk


def _load_file(trunk: ResNet38d, path: Path) -> None:
    from wsss_rt.training.checkpoints import read_state_dict

    expected = trunk.state_dict()
    state = read_state_dict(path)
    # checkpoints of classifiers have heads, and older ones no counters of batches
    absent = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    misshapen = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if absent or misshapen:
        raise WsssError(
            f"{path} does not hold the weights of this backbone",
            why=f"missing or misshapen: {', '.join(absent + misshapen)}",
            fix="give the state dict of a ResNet-38d, with keys such as b4_5.conv_branch2b1.weight",
            code="state_dict",
        )
    with torch.no_grad():
        trunk.load_state_dict({**expected, **{key: state[key] for key in expected if key in state}})


@register_model
def resnet38d(pretrained: bool = False, **_: Any) -> ResNet38d:
    """The official trunk: 105 M parameters."""
    return ResNet38d()


@register_model
def resnet38d_eighth(pretrained: bool = False, **_: Any) -> ResNet38d:
    """All blocks, an eighth of the channels: 1.6 M parameters, to be trained from nothing."""
    return ResNet38d(widths=[width // 8 for width in _WIDTHS], dropout=(0.0, 0.0))


@register_model
def resnet38d_test_tiny(pretrained: bool = False, **_: Any) -> ResNet38d:
    """A block a stage and few channels, for tests."""
    return ResNet38d(widths=(4, 8, 8, 16, 24, 32, 40), depths=(1, 1, 2, 2))


CONV_BACKBONES = {
    "resnet38d": resnet38d,
    "resnet38d_eighth": resnet38d_eighth,
    "resnet38d_test_tiny": resnet38d_test_tiny,
}
