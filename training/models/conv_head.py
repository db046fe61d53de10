"""A light convolutional head on the same features: the baseline that attention-to-mask has to beat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wsss_rt.training.mask_losses import pixel_cross_entropy
from wsss_rt.training.models.segmenter import Grid, Segmenter

# keeps the odds of a class finite that is certain somewhere
_CERTAIN = 1e-6


class ConvHead(Segmenter):
    """The taps, normed, projected and added up; a 3x3 convolution, a 1x1 one to the classes; bilinear.

    It learns the class of every known pixel by cross entropy; unknown ones (255) teach nothing.

    Args:
        width: channels of the head; None takes half the trunk's.
        dropout: before the last convolution, while training.
        options: of :class:`Segmenter`; ``masks_at`` decides nothing here: scores are made on the image.
    """

    def __init__(
        self, backbone: Any, *, width: int | None = None, dropout: float = 0.1, **options: Any
    ) -> None:
        super().__init__(backbone, **options)
        channels = width or self.embed_dim // 2
        self.norms = nn.ModuleList(nn.LayerNorm(self.embed_dim) for _ in self.taps)
        self.projections = nn.ModuleList(nn.Linear(self.embed_dim, channels) for _ in self.taps)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, self.outputs, 1),
        )

    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"pixel": pixel_cross_entropy(self._logits(images), targets)}

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = torch.softmax(self._logits(images).float(), dim=1)
        peak = probabilities[:, int(self.background) :].amax(dim=(2, 3)).clamp(_CERTAIN, 1 - _CERTAIN)
        return torch.log(peak) - torch.log1p(-peak), probabilities

    @torch.no_grad()
    def intermediates(self, images: Tensor) -> dict[str, Tensor]:
        tokens, grid = self.embed(images)
        taps = self.features(tokens, grid)
        named = {f"feat_{index}": tap for index, tap in zip(self.taps, taps, strict=True)}
        return {"embed": tokens, **named, "logits": self._decode(taps, grid), "pred": self.segment(images)}

    def _logits(self, images: Tensor) -> Tensor:
        tokens, grid = self.embed(images)
        size = (images.shape[-2], images.shape[-1])
        return self.grow(self._decode(self.features(tokens, grid), grid), size)

    def _decode(self, taps: list[Tensor], grid: Grid) -> Tensor:
        parts = [
            project(norm(tap)) for project, norm, tap in zip(self.projections, self.norms, taps, strict=True)
        ]
        merged = torch.stack(parts).sum(dim=0).transpose(1, 2).unflatten(2, grid)
        logits: Tensor = self.head(merged)
        return logits
