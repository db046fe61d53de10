"""What methods on a convolutional trunk share: sizes, a stem at rest, rates of new layers."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from wsss_rt.training.models.resnet38d import ResNet38d


class ConvMethod(nn.Module):
    """Base, beside that of its kind, of the methods on a :class:`ResNet38d`.

    Args:
        trunk: what it runs on.
        num_classes: C.
        img_size: see below.
        freeze_stem: the first two stages keep their weights.

    Attributes:
        num_classes: C.
        img_size: side in pixels of the training images; any other size runs too.
        patch_size: pixels per cell of what comes out.
        new_layers: names of the modules that did not come with the trunk.
        needed_planes, optional_planes: what ``losses`` wants, or can use, beside images and tags; keys of
            ``training.data.planes.PLANES``.
        official_leftovers: how keys begin that an official state dict may hold and nothing reads.
    """

    default_backbone: ClassVar[str] = "resnet38d"
    default_img_size: ClassVar[int] = 448
    new_layers: ClassVar[frozenset[str]] = frozenset()
    needed_planes: ClassVar[tuple[str, ...]] = ()
    optional_planes: ClassVar[tuple[str, ...]] = ()
    official_leftovers: tuple[str, ...] = ()

    def __init__(self, trunk: ResNet38d, *, num_classes: int, img_size: int, freeze_stem: bool) -> None:
        # past that of a method on a ViT, whose parts there are none of
        nn.Module.__init__(self)
        self.num_classes, self.img_size, self.patch_size = num_classes, img_size, 8
        if freeze_stem:
            trunk.freeze_stem()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must not touch, beside biases and one-dimensional ones."""
        return set()

    def lr_factor(self, name: str) -> float:
        """How much faster than the trunk a parameter learns: layers that begin at random, ten times."""
        return 1.0 if self.new_layers.isdisjoint(name.split(".")) else 10.0
