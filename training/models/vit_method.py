"""What methods on the trunk of a timm ViT share: its parts, tokens and positions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsss_rt.training.models import tokens as token_ops
from wsss_rt.training.models.base import Localizer, Method
from wsss_rt.training.models.position import resize_positions


class ViTMethod(Method):
    """Base of the methods on a ViT; holds ``patch_embed``, ``blocks`` and ``norm`` of the backbone.

    Args:
        backbone: timm ViT without a head.
        num_classes: C.
        img_size: side in pixels of the square image that the stored position embedding belongs to.

    Attributes:
        embed_dim: D.
        depth: number of blocks.
        pos_embed: learned positions, see :meth:`stored_positions`.
    """

    pos_embed: nn.Parameter

    def __init__(self, backbone: Any, *, num_classes: int, img_size: int) -> None:
        patch = int(backbone.patch_embed.patch_size[0])
        super().__init__(num_classes=num_classes, img_size=img_size, patch_size=patch)
        self.patch_embed = backbone.patch_embed
        self.blocks = backbone.blocks
        self.norm = backbone.norm
        self.embed_dim = int(backbone.embed_dim)
        self.depth = len(backbone.blocks)

    @property
    def stored_side(self) -> int:
        """Rows, and columns, of the stored position grid."""
        return self.img_size // self.patch_size

    def stored_positions(self) -> tuple[Tensor, Tensor]:
        """Learned positions of the class tokens (1, T, D) and of the patches (1, side * side, D).

        They are views of the parameters: what is written into them without gradient is stored.
        """
        return token_ops.split(self.pos_embed, self.pos_embed.shape[1] - self.stored_side**2)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "pos_embed"}

    def trunk_features(self, images: Tensor) -> Tensor:
        """What the patch projection reads: the images, or features (B, F, h, w) of a convolutional trunk."""
        trunk = getattr(self.patch_embed, "backbone", None)
        return images if trunk is None else trunk(images)

    def patch_tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens (B, N, D) before positions, and the grid (rows, columns).

        The projection is called itself, past timm's size checks: a strided convolution without padding floors
        sizes that are no multiple of the patch, as the official code does.
        """
        features = self.patch_embed.proj(self.trunk_features(images))
        tokens = features.flatten(2).transpose(1, 2)
        return self.patch_embed.norm(tokens), (features.shape[-2], features.shape[-1])


class ViTLocalizer(ViTMethod, Localizer):
    """Base of the localizers on a ViT, which look for classes with class tokens.

    Attributes:
        cls_token: learned class tokens (1, C, D), or (1, 1, D) where one stands for all classes.
        pos_embed: learned positions (1, C + side * side, D), class tokens first; a method that keeps the two
            apart overrides :meth:`stored_positions`.
        position_offset: enters the sampling step of resized positions, see ``resize_positions``.
        position_bilinear: whether these are resized bilinearly; bicubically otherwise.
    """

    operators: ClassVar[tuple[str, ...]] = ("attention_aggregate", "affinity_propagate")
    cls_token: nn.Parameter
    position_offset: float = 0.0
    position_bilinear: bool = False

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Tensor]:
        """Token sequence (B, C + N, D) with positions, the grid, and the positions (1, C + N, D)."""
        patches, grid = self.patch_tokens(images)
        of_classes, of_patches = self.stored_positions()
        size = (images.shape[-2], images.shape[-1])
        resized = resize_positions(
            of_patches,
            grid,
            image_size=size,
            offset=self.position_offset,
            bilinear=self.position_bilinear,
        )
        positions = torch.cat((of_classes, resized), dim=1)
        return token_ops.prepend(self.cls_token, patches) + positions, grid, positions
