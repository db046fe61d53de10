"""Losses of the methods, always computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from wsss_rt.errors import UsageError, nearest
from wsss_rt.kernels.precision import without_autocast

#: What image-level tags are learned by: one class an image, or several.
TAG_LOSSES = ("cross_entropy", "soft_margin")


def check_tag_loss(kind: str, *, smoothing: float = 0.0) -> None:
    """Refuse a name that is none of :data:`TAG_LOSSES`, or a smoothing that does not fit.

    Raises:
        UsageError: says what is meant.
    """
    if kind not in TAG_LOSSES:
        raise UsageError(f"unknown loss {kind!r}", fix=nearest(kind, TAG_LOSSES))
    if not 0 <= smoothing < 1:
        raise UsageError(f"smoothing is {smoothing}, but must lie in 0..1")
    if smoothing and kind != "cross_entropy":
        raise UsageError(f"smoothing belongs to the loss 'cross_entropy', not to {kind!r}")


def tag_loss(kind: str, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """:func:`cross_entropy` or :func:`multilabel_soft_margin`, by name; see there."""
    if kind == "soft_margin":
        return multilabel_soft_margin(logits, targets)
    return cross_entropy(logits, targets, smoothing=smoothing)


def multilabel_soft_margin(logits: Tensor, targets: Tensor) -> Tensor:
    """Multi-label soft margin loss: binary cross entropy of each class, mean over classes, then over images.

    Args:
        logits: (B, C), any float type; half precision is widened, since its log-sigmoid loses the tail.
        targets: (B, C) in {0, 1}; any dtype.

    Returns:
        Scalar float32.
    """
    return functional.binary_cross_entropy_with_logits(logits.float(), targets.float())


def cross_entropy(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of a softmax over classes, mean over images.

    Args:
        logits: (B, C), any float type.
        targets: (B, C) in {0, 1}; any dtype. Several classes of an image share its target equally; an image
            without any adds nothing but what smoothing asks for.
        smoothing: share of the target that is spread over all classes, 0..1.

    Returns:
        Scalar float32.
    """
    wanted = targets.float()
    shares = wanted / wanted.sum(dim=1, keepdim=True).clamp_min(1)
    return functional.cross_entropy(logits.float(), shares, label_smoothing=smoothing)


def class_token_contrast(tokens: Tensor, targets: Tensor) -> Tensor:
    """Contrast of class tokens (MCTformer+, TPAMI 2024): those of present classes differ from all others.

    In every layer a class token is to be picked among all class tokens of its image by cosine similarity,
    without a temperature; the cross entropy is the mean over layers, over present classes, then over images.

    Args:
        tokens: (L, B, C, D), output class tokens of the layers that count; any float type.
        targets: (B, C) in {0, 1}; any dtype.

    Returns:
        Scalar float32; an image without classes adds 0.
    """
    present = targets.float()
    # half precision would round the cosines, whose differences are all that counts
    with without_autocast(tokens.device):
        unit = functional.normalize(tokens.float(), dim=-1)
        cosine = unit @ unit.transpose(-2, -1)
    entropy = torch.logsumexp(cosine, dim=-1) - cosine.diagonal(dim1=-2, dim2=-1)
    per_image = (entropy * present).sum(dim=-1).mean(dim=0)
    return (per_image / (present.sum(dim=-1) + 1e-8)).mean()
