"""Losses that several methods share, always computed in float32."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def multilabel_soft_margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Multi-label soft margin loss: binary cross entropy of each class, mean over classes, then over images.

    Args:
        logits: (B, C), any float type; half precision is widened, since its log-sigmoid loses the tail.
        targets: (B, C) in {0, 1}; any dtype.

    Returns:
        Scalar float32.
    """
    return functional.binary_cross_entropy_with_logits(logits.float(), targets.float())
