"""What methods on a convolutional trunk share: sizes, a stem at rest, which layers are new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import nn

from wsss_rt.training.models.base import Method
from wsss_rt.training.models.resnet38d import ResNet38d


class ConvMethod(Method):
    """Base of the methods on a :class:`ResNet38d`; images of any size run.

    Args:
        trunk: what it runs on.
        num_classes: C.
        img_size: side in pixels of the training images.
        freeze_stem: the first two stages keep their weights.

    Attributes:
        new_layers: names of the modules that did not come with the trunk.
    """

    default_backbone: ClassVar[str] = "resnet38d"
    default_img_size: ClassVar[int] = 448
    new_layers: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, trunk: ResNet38d, *, num_classes: int, img_size: int, freeze_stem: bool) -> None:
        super().__init__(num_classes=num_classes, img_size=img_size, patch_size=8)
        if freeze_stem:
            trunk.freeze_stem()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        for name, parameter in self.named_parameters():
            if not self.new_layers.isdisjoint(name.split(".")):
                yield parameter
