"""Intermediates of every layer, for ``localize(..., extras=True)``."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_rt.training.models.fusion import to_grid

_KEEP_BATCH = ("logits", "cls_tokens_all_layers")


class LayerTrace:
    """Collects what is worth comparing while blocks run; pass it as ``observe`` to ``run_blocks``.

    Attributes:
        affinity_sum: (B, N, N), patch-to-patch attention, head mean, summed over the layers so far.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._class_to_patch: list[Tensor] = []
        self._class_tokens: list[Tensor] = []
        self._first_output: Tensor | None = None
        self._affinity_last: Tensor | None = None
        self._rows_last: Tensor | None = None
        self._affinity_sum: Tensor | None = None

    def __call__(self, layer: int, tokens: Tensor, attention: Tensor) -> None:
        """Take the output tokens (B, T, D) and attention (B, H, T, T) of a layer."""
        mean = attention.mean(dim=1)[:, :, self._classes :].float()
        affinity = mean[:, self._classes :]
        self._class_to_patch.append(mean[:, : self._classes])
        self._class_tokens.append(tokens[:, : self._classes])
        self._affinity_sum = affinity if self._affinity_sum is None else self._affinity_sum + affinity
        self._affinity_last = affinity
        self._rows_last = attention[:, 0, : min(4, self._classes)]
        if layer == 0:
            self._first_output = tokens

    @property
    def affinity_sum(self) -> Tensor:
        assert self._affinity_sum is not None
        return self._affinity_sum

    def class_tokens(self) -> Tensor:
        """Class tokens (L, B, C, D) after each block."""
        return torch.stack(self._class_tokens)

    def class_to_patch(self, grid: tuple[int, int]) -> Tensor:
        """Class-to-patch attention (B, L, C, rows, columns) of each layer, head mean."""
        return torch.stack([to_grid(part, grid) for part in self._class_to_patch], dim=1)

    def last_layers(self, count: int) -> Tensor:
        """Class-to-patch attention (B, C, N), head mean, summed over the last ``count`` layers."""
        return torch.stack(self._class_to_patch[-count:]).sum(dim=0)

    def named(self, grid: tuple[int, int]) -> dict[str, Tensor]:
        """What does not depend on the method; layers are counted from 0."""
        assert (
            self._first_output is not None and self._affinity_last is not None and self._rows_last is not None
        )
        depth = len(self._class_to_patch)
        return {
            "block0_out_first8ch": self._first_output[..., :8],
            "c2p_layers_headmean": self.class_to_patch(grid),
            f"attn_L{depth - 1}_head0_cls0to3_full": self._rows_last,
            f"affinity_sum{depth}": self.affinity_sum,
            f"affinity_layer{depth - 1}": self._affinity_last,
        }


def without_batch_of_one(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the batch dimension where it is 1, but for logits and what lists all layers first."""
    return {
        name: value if name.startswith(_KEEP_BATCH) or value.shape[0] != 1 else value[0]
        for name, value in named.items()
    }
