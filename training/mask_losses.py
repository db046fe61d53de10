"""Losses of the methods that learn from masks, always computed in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed
from torch.nn import functional

from wsss_rt.kernels.precision import without_autocast

IGNORE = 255
# weights and shape of the official criterion (MaskFormer's, without matching)
_NO_OBJECT = 0.1
_MASK_WEIGHT = 20.0
_ALPHA, _GAMMA = 0.25, 2.0


def attention_to_mask_losses(
    masks: Sequence[Tensor],
    class_logits: Sequence[Tensor],
    targets: Tensor,
    *,
    grow: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """SegViT's losses of every output, earlier ones as deep supervision with the same weights.

    Token k stands for class k: there is no matching. Its class target is k where the image shows k, and
    no-object (weight 0.1) elsewhere; its mask learns only where the image shows k, by focal (weight 20) and
    dice loss over all pixels. Unknown pixels count as "not this class", as in the official code.

    Args:
        masks: per output (B, K, h, w) logits; the last one is the prediction.
        class_logits: per output (B, K, K + 1).
        targets: (B, H, W) integer, 0 to K - 1, 255 where unknown.
        grow: (P, 1, h, w) to (P, 1, H, W).

    Returns:
        ``loss_ce``, ``loss_mask``, ``loss_dice`` of the last output; with ``_0``, ``_1`` … of earlier ones.
    """
    outputs = class_logits[-1].shape[1]
    labels = targets.long()
    seen = torch.stack([(labels == number).flatten(1).any(dim=1) for number in range(outputs)], dim=1)
    images, numbers = seen.nonzero(as_tuple=True)
    truth = (labels[images] == numbers[:, None, None]).float()
    count = _mean_over_processes(truth.new_tensor(float(len(images)))).clamp(min=1)
    losses = {}
    with without_autocast(targets.device):
        for index, (maps, logits) in enumerate(zip(masks, class_logits, strict=True)):
            suffix = "" if index == len(masks) - 1 else f"_{index}"
            chosen = grow(maps.float()[images, numbers][:, None])[:, 0]
            losses[f"loss_ce{suffix}"] = _class_loss(logits.float(), seen)
            losses[f"loss_mask{suffix}"] = _MASK_WEIGHT * focal(chosen, truth).sum() / count
            losses[f"loss_dice{suffix}"] = dice(chosen, truth).sum() / count
    return losses


def focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Sigmoid focal loss of each mask (alpha 0.25, gamma 2), mean over its pixels: (P, H, W) to (P,)."""
    probability = torch.sigmoid(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    missed = probability + truth - 2 * probability * truth
    weight = _ALPHA * truth + (1 - _ALPHA) * (1 - truth)
    return (weight * entropy * missed**_GAMMA).flatten(1).mean(dim=1)


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice loss of each mask with one pixel added to both sides of the ratio: (P, H, W) to (P,)."""
    probability, wanted = torch.sigmoid(logits).flatten(1), truth.flatten(1)
    shared = (probability * wanted).sum(dim=1)
    return 1 - (2 * shared + 1) / (probability.sum(dim=1) + wanted.sum(dim=1) + 1)


def pixel_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of every known pixel, their mean; 0 where none is known.

    Args:
        logits: (B, K, H, W), any float type.
        targets: (B, H, W) integer, 255 where unknown.
    """
    labels = targets.long()
    total = functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def _class_loss(logits: Tensor, seen: Tensor) -> Tensor:
    outputs = seen.shape[1]
    own = torch.arange(outputs, device=seen.device)
    wanted = torch.where(seen, own, outputs)
    weights = logits.new_ones(outputs + 1)
    weights[-1] = _NO_OBJECT
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight=weights)


def _mean_over_processes(value: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(value)
        value = value / distributed.get_world_size()
    return value
