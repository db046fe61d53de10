"""Intermediates of ACR for ``localize(..., extras=True)``, under the names of the published numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsss_rt.training.models.attention import run_blocks
from wsss_rt.training.models.gradient_maps import GRADIENTS, autograd_gradients, class_map

if TYPE_CHECKING:
    from wsss_rt.training.models.acr import ACR

# whole gradients are kept up to this many tokens: they are C times the size of all attention
_WHOLE_TOKENS = 64
_SOME_ROW = 101
# these have the batch dimension also where it is 1
_BATCHED = ("logits_", "patch_cam", "backbone_feat", "tokens_embed", "final_norm", "patch_aff_sum")


def intermediates(model: ACR, images: Tensor) -> dict[str, Tensor]:
    """Run the model once more, and differentiate it by autograd, class after class.

    Args:
        model: in eval mode.
        images: (B, 3, H, W).

    Returns:
        For a batch of one as the published numbers are; else everything has the batch dimension in front.
        ``getam_FUNCTION_sL_cC`` is the map (B, N) of class C from block L on, ``_aff`` after refinement.
    """
    tokens, _, _ = model._embed(images)
    outputs: list[Tensor] = []
    run_blocks(model.blocks, tokens, observe=lambda layer, output, attention: outputs.append(output))
    rows = None if tokens.shape[1] <= _WHOLE_TOKENS else 1
    gradients, attentions = autograd_gradients(model.blocks, tokens, model.head, rows=rows)
    heads = torch.stack(attentions, dim=1)
    mean = heads.mean(dim=2)
    affinity = mean[:, :, 1:, 1:].sum(dim=1)
    final = outputs[-1]
    features = model.trunk_features(images)
    named = {
        "logits_cls": model.head(final[:, 0]),
        "logits_patch": model.head(final[:, 1:].mean(dim=1)),
        "patch_cam": model.head(final[:, 1:]).relu(),
        "backbone_feat": features,
        "backbone_feat_ch0_7": features[:, :8],
        "tokens_embed": tokens,
        "final_norm_out_unused": model.norm(final),
        "block_out": torch.stack(outputs, dim=1),
        "token0_block_out": torch.stack([output[:, 0] for output in outputs], dim=1),
        "attn_heads": heads,
        "attn_headmean": mean,
        "attn_headmean_clsrow": mean[:, :, 0],
        "patch_aff_sum": affinity,
    }
    if tokens.shape[1] > _SOME_ROW:
        named["attn_headmean_row100"] = mean[:, :, _SOME_ROW]
    named |= _gradients(gradients, depth=model.depth, classes=model.num_classes)
    named |= _maps(gradients, attentions, affinity)
    named = {name: value.detach() for name, value in named.items()}
    if images.shape[0] > 1:
        return named
    return {name: value if _keeps_batch(name) else value[0] for name, value in named.items()}


def _keeps_batch(name: str) -> bool:
    return name == "attn_headmean" or name.startswith(_BATCHED)


def _gradients(gradients: list[Tensor], *, depth: int, classes: int) -> dict[str, Tensor]:
    stacked = torch.stack(gradients, dim=1)  # (B, L, H, C, rows, T)
    named = {}
    for index in range(classes):
        of_class = stacked[:, :, :, index]
        if of_class.shape[-2] > 1:
            named[f"attn_grad_heads_c{index}"] = of_class
        named[f"attn_grad_heads_row0_c{index}"] = of_class[..., 0, :]
        last_two = of_class[:, -2:, :, 0]
        named[f"attn_grad_heads_row0_L{depth - 2}_{depth - 1}_c{index}"] = last_two
    return named


def _maps(gradients: list[Tensor], attentions: list[Tensor], affinity: Tensor) -> dict[str, Tensor]:
    """Maps of all functions from some blocks on: with twelve, from 0, 6, 9, 10 and 11."""
    depth = len(gradients)
    starts = {start for start in (0, depth // 2, depth - 3, depth - 2, depth - 1) if start >= 0}
    named = {}
    for function in GRADIENTS:
        parts = [
            class_map(gradient[..., 0, :], attention[:, :, 0], function)
            for gradient, attention in zip(gradients, attentions, strict=True)
        ]
        for start in starts:
            summed = torch.stack(parts[start:]).sum(dim=0)
            refined = summed @ affinity.transpose(-2, -1)
            for index in range(summed.shape[1]):
                named[f"getam_{function}_s{start}_c{index}"] = summed[:, index]
                named[f"getam_{function}_s{start}_c{index}_aff"] = refined[:, index]
    return named
