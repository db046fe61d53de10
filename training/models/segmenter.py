"""What every segmenter shares: a ViT trunk read at several depths, the entrances, official keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_rt.errors import UsageError, nearest
from wsss_rt.model_card import InputSpec
from wsss_rt.training.models.attention import block_forward
from wsss_rt.training.models.position import new_positions, resize_positions
from wsss_rt.training.models.vit_method import ViTMethod

#: Where masks become class scores: on a square of the training size, stretched afterwards; or on the image.
MASKS_AT = ("img_size", "image")
Grid = tuple[int, int]

# timm to the official backbone (mmsegmentation's), within a block and outside of it
_BLOCK_KEYS = {
    "norm1.": "ln1.",
    "norm2.": "ln2.",
    "attn.qkv.weight": "attn.attn.in_proj_weight",
    "attn.qkv.bias": "attn.attn.in_proj_bias",
    "attn.proj.": "attn.attn.out_proj.",
    "mlp.fc1.": "ffn.layers.0.0.",
    "mlp.fc2.": "ffn.layers.1.",
}
_PATCH_KEYS = {"patch_embed.proj.": "patch_embed.projection."}


class Segmenter(ViTMethod):
    """Base of the methods that learn from masks; a class per pixel comes out.

    Only residual-stream values leave the trunk: it has no class token and no final norm. Stochastic depth
    drops MLP branches alone, as the official code does.

    Args:
        backbone: timm ViT without a head.
        num_classes: C, without background.
        img_size: side in pixels of the stored position grid.
        background: whether background is an output of its own, the first one; official checkpoints of data
            sets in which every pixel has a class have none.
        taps: blocks (from 0) whose outputs the head reads, ascending; None takes the official ones, or the
            ends of the trunk's thirds where its depth is not 12.
        masks_at: see :data:`MASKS_AT`. ``img_size`` is the official way, and a stretch away from it on other
            sizes; ``image`` keeps every pixel's own place.

    Attributes:
        outputs: K, C and background.
        pos_embed: learned positions (1, side * side, D).
    """

    kind = "segmenter"

    def __init__(
        self,
        backbone: Any,
        *,
        num_classes: int,
        img_size: int,
        background: bool = False,
        taps: Sequence[int] | None = None,
        masks_at: str = "img_size",
    ) -> None:
        super().__init__(backbone, num_classes=num_classes, img_size=img_size)
        self.norm = nn.Identity()
        for block in self.blocks:
            block.drop_path1 = nn.Identity()
        self.background = bool(background)
        self.outputs = num_classes + self.background
        self.taps = tuple(taps) if taps is not None else self._default_taps()
        ordered = all(low < high for low, high in zip(self.taps, self.taps[1:], strict=False))
        if not self.taps or not ordered or not 0 <= self.taps[0] <= self.taps[-1] < self.depth:
            raise UsageError(
                f"taps {list(self.taps)} are not ascending blocks of a trunk of {self.depth}",
                fix=f"for example {list(self._default_taps())}",
            )
        self.masks_at = masks_at
        self.pos_embed = new_positions(self.stored_side**2, self.embed_dim)

    @property
    def masks_at(self) -> str:
        """Where masks become class scores; may be set any time."""
        return self._masks_at

    @masks_at.setter
    def masks_at(self, value: str) -> None:
        if value not in MASKS_AT:
            raise UsageError(f"unknown masks_at {value!r}", fix=nearest(value, MASKS_AT))
        self._masks_at = value

    @abstractmethod
    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Named float32 scalars that the training loop sums.

        Args:
            images: (B, 3, H, W) float32, normalised.
            targets: (B, H, W) integer, the output (0 to K - 1) of each pixel, 255 where it is unknown.
        """

    @abstractmethod
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, C) and the class scores of :meth:`segment`.

        Scores are logits: of a class against its absence from the image; background has none.
        """

    @abstractmethod
    def intermediates(self, images: Tensor) -> dict[str, Tensor]:
        """Named intermediates with their batch dimension, as the goldens name them."""

    def segment(self, images: Tensor) -> Tensor:
        """Class scores of every pixel, (B, K, H, W) float32, at least 0; the largest is the pixel's class.

        Args:
            images: (B, 3, H, W) float32, normalised, of any size from one patch; what is missing to whole
                patches is filled with zeros at the right and bottom.
        """
        return self.predict(images)[1]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`predict`; the entrance of exporters and profilers."""
        return self.predict(images)

    def constants_folded(self) -> AbstractContextManager[None]:
        """While it lasts, what depends on weights alone is a constant; for export, in eval mode."""
        return nullcontext()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        for name, parameter in self.named_parameters():
            if not name.startswith(("patch_embed.", "blocks.", "pos_embed")):
                yield parameter

    def official_input(self) -> InputSpec:
        """Input policy of the official configurations: short side and windows of ``img_size``.

        Strides are those of ADE (640 px: 608), COCO and the base (512: 341) and Pascal Context (480: 320);
        ViT-L's weights want pixels in -1..1, ViT-B's ImageNet's mean and deviation.
        """
        strides = {640: 608, 512: 341, 480: 320}
        half = (0.5, 0.5, 0.5)
        usual = InputSpec()
        large = self.depth == 24
        return InputSpec(
            mean=half if large else usual.mean,
            std=half if large else usual.std,
            patch=self.patch_size,
            size_policy="short_side",
            size=self.img_size,
            max_pixels=2048 * self.img_size,
            window=self.img_size,
            stride=strides.get(self.img_size, self.img_size * 2 // 3),
        )

    def embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Patch tokens with positions (B, N, D), and the grid, which covers the image and its padding."""
        rest = [-side % self.patch_size for side in images.shape[-2:]]
        if not all(type(value) is int and value == 0 for value in rest):
            images = functional.pad(images, (0, rest[1], 0, rest[0]))
        tokens, grid = self.patch_tokens(images)
        return tokens + resize_positions(self.pos_embed, grid, image_size=grid, offset=0.0), grid

    def features(self, tokens: Tensor, grid: Grid) -> list[Tensor]:
        """Outputs (B, L, D) of the tapped blocks, shallowest first; blocks behind the last tap do not run."""
        found = []
        for index, block in enumerate(self.blocks[: self.taps[-1] + 1]):
            tokens = block_forward(block, tokens)
            if index in self.taps:
                found.append(tokens)
        return found

    def grow(self, masks: Tensor, size: Grid) -> Tensor:
        """Token maps (B, Q, h, w) at every pixel of an image of ``size``: bilinear, the padding cut off.

        The map may have any grid; it covers the padded image.
        """
        patch = self.patch_size
        padded = [side + -side % patch for side in size]
        grown = functional.interpolate(masks, size=padded, mode="bilinear", align_corners=False)
        return grown[..., : size[0], : size[1]]

    def official_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {self._official_key(name): tuple(value.shape) for name, value in self.state_dict().items()}
        # the official backbone adds a class token and its position, and drops them before the first block
        shapes["backbone.cls_token"] = (1, 1, self.embed_dim)
        shapes["backbone.pos_embed"] = (1, 1 + self.stored_side**2, self.embed_dim)
        return shapes

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = {name: state[self._official_key(name)] for name in self.state_dict()}
        ours["pos_embed"] = state["backbone.pos_embed"][:, 1:]
        return ours

    def _official_key(self, name: str) -> str:
        if name.startswith("decode_head."):
            return name
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            ours = next(key for key in _BLOCK_KEYS if rest.startswith(key))
            return f"backbone.layers.{index}.{_BLOCK_KEYS[ours]}{rest.removeprefix(ours)}"
        for ours, theirs in _PATCH_KEYS.items():
            if name.startswith(ours):
                return f"backbone.{theirs}{name.removeprefix(ours)}"
        return f"backbone.{name}"

    def _default_taps(self) -> tuple[int, ...]:
        if self.depth == 12:
            return (5, 7, 11)
        thirds = {max(0, self.depth * part // 3 - 1) for part in (1, 2, 3)}
        return tuple(sorted(thirds))


def classes_of(probabilities: Tensor, masks: Tensor) -> Tensor:
    """What class tokens found, times where: ``sum over q of P[b, q, k] * masks[b, q, y, x]``.

    A full product: a token's mask counts for every class that it might be (SegViT, equation 5).

    Args:
        probabilities: (B, Q, K), softmaxed with no-object, which is left out.
        masks: (B, Q, H, W) in 0..1.

    Returns:
        (B, K, H, W), 0..Q.
    """
    product = probabilities.transpose(1, 2) @ masks.flatten(2)
    return product.unflatten(2, (masks.shape[2], masks.shape[3]))


def presence(class_logits: Tensor) -> Tensor:
    """(B, K) logits of each class against no-object, from its own token's class logits (B, K, K + 1)."""
    own = torch.diagonal(class_logits, dim1=1, dim2=2)
    return own - class_logits[..., -1]
