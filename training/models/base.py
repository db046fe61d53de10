"""What every method shares: the trunk of a timm ViT, the entrances, the official state dict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wsss_rt.errors import WsssError
from wsss_rt.training.models import tokens as token_ops
from wsss_rt.training.models.position import resize_positions


@dataclass(frozen=True)
class Localization:
    """What a localizer says of a batch.

    Attributes:
        scores: (B, C) float32 logits.
        maps: (B, C, rows, columns) float32, one value per patch token; scale and offset are the method's own.
        extras: named intermediates, empty unless asked for; without the batch dimension when B is 1, but for
            logits and what lists all layers first (token refinement keeps it everywhere).
    """

    scores: Tensor
    maps: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """Base of localizers and segmenters; holds ``patch_embed``, ``blocks`` and ``norm`` of the backbone.

    Attributes:
        num_classes: C, without background.
        img_size: side in pixels of the square image that the stored position embedding belongs to.
        patch_size: pixels per token.
        embed_dim: D.
        depth: number of blocks.
        pos_embed: learned positions, see :meth:`stored_positions`.
        official_leftovers: how keys begin that an official state dict may hold and nothing reads.
    """

    pos_embed: nn.Parameter
    official_leftovers: tuple[str, ...] = ()

    def __init__(self, backbone: Any, *, num_classes: int, img_size: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.img_size = img_size
        self.patch_embed = backbone.patch_embed
        self.blocks = backbone.blocks
        self.norm = backbone.norm
        self.patch_size = int(backbone.patch_embed.patch_size[0])
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

    @abstractmethod
    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Named float32 scalars that the training loop sums.

        Args:
            images: (B, 3, H, W) float32, normalised.
            targets: what the kind of method learns from.
        """

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must not touch, beside biases and one-dimensional ones."""
        return {"cls_token", "pos_embed"}

    def official_shapes(self) -> dict[str, tuple[int, ...]]:
        """Keys and shapes of the official state dict; methods whose names differ from it override this."""
        return {name: tuple(value.shape) for name, value in self.state_dict().items()}

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict from the official one, which was checked before."""
        return dict(state)

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


class Localizer(Method):
    """Base of the methods that learn from image-level tags.

    Attributes:
        cls_token: learned class tokens (1, C, D), or (1, 1, D) where one stands for all classes.
        pos_embed: learned positions (1, C + side * side, D), class tokens first; a method that keeps the two
            apart overrides :meth:`stored_positions`.
        position_offset: enters the sampling step of resized positions, see ``resize_positions``.
        position_bilinear: whether these are resized bilinearly; bicubically otherwise.
        align_corners: whether the official code brings maps to the image's size with aligned corners.
    """

    cls_token: nn.Parameter
    position_offset: float = 0.0
    position_bilinear: bool = False
    align_corners: bool = False

    @abstractmethod
    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Named float32 scalars that the training loop sums.

        Args:
            images: (B, 3, H, W) float32, normalised.
            targets: (B, C) in {0, 1}, float.
        """

    @abstractmethod
    def localize(self, images: Tensor, extras: bool = False) -> Localization:
        """Scores and maps of a batch: one traceable graph, refinement inside.

        Args:
            images: (B, 3, H, W) float32, normalised; H and W need not be multiples of the patch (the
                remainder at the right and bottom is not seen).
            extras: also return named intermediates.
        """

    def localize_each(self, images: Tensor, variants: Sequence[Mapping[str, Any]]) -> list[Localization]:
        """:meth:`localize` once per set of method options; methods that can share the forward pass do.

        Args:
            images: as for :meth:`localize`.
            variants: options by name, e.g. ``{"attention_type": "patchcam"}``; the model's own otherwise.
        """
        found = []
        for options in variants:
            with options_set(self, options):
                found.append(self.localize(images))
        return found

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and maps of :meth:`localize`; the entrance of exporters and profilers."""
        out = self.localize(images)
        return out.scores, out.maps

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


@contextmanager
def options_set(model: nn.Module, options: Mapping[str, Any]) -> Iterator[None]:
    """Attributes of a model, changed for a while."""
    kept = {name: getattr(model, name) for name in options}
    try:
        for name, value in options.items():
            setattr(model, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(model, name, value)


def official_shapes(model: Method) -> dict[str, tuple[int, ...]]:
    """Key to shape of the official repository's state dict for this model."""
    return model.official_shapes()


def load_official(model: Method, state: Mapping[str, Any]) -> None:
    """Load the official repository's state dict, strictly.

    Args:
        model: changed in place.
        state: key to tensor, or a checkpoint ``{"model": that}``.

    Raises:
        WsssError: keys are missing, extra or of another shape; all are listed, and nothing was loaded.
    """
    if isinstance(state.get("model"), Mapping):
        state = state["model"]
    expected = model.official_shapes()
    missing = [key for key in expected if key not in state]
    leftovers = model.official_leftovers
    extra = [key for key in state if key not in expected and not key.startswith(leftovers)]
    misshapen = [
        f"{key} {_shape_of(state[key])} instead of {shape}"
        for key, shape in expected.items()
        if key in state and _shape_of(state[key]) != shape
    ]
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys)}"
        for kind, keys in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise WsssError(
            f"the state dict is not one of {type(model).__name__} with {model.num_classes} classes",
            why="; ".join(problems),
            fix="check method, number of classes, img_size and backbone against the checkpoint",
            code="state_dict",
        )
    model.load_state_dict(model.from_official(state), strict=True)


def _shape_of(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
