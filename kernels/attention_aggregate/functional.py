"""The steps of ``attention_aggregate`` as operators without side effects: what a graph holds as plugin nodes.

Each has one launch for its kernel on a GPU (``wsss_rt.export.tensorrt_plugins``); here, where graphs are
traced and checked, plain PyTorch computes the same. Statistics of a row are its largest logit, in units of
base 2, and 1 / sum, as in README.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wsss_rt.kernels._plugin_node import plugin_node

_LOG2_E = math.log2(math.e)


@torch.library.custom_op("wsss_rt::attend_rows", mutates_args=())
def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, num_class_tokens: int, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention, its statistics, and class tokens' attention to the patches.

    Args:
        q: (B, H, T, d).
        k: as ``q``.
        v: as ``q``.
        num_class_tokens: C; 0 where no class rows are asked for.
        scale: of the logits.

    Returns:
        (B, H, T, d) in the type of ``v``; (B, H, T) twice and (B, H, C, T - C) float32.
    """
    wide = [part.float() for part in (q, k, v)]
    logits = wide[0] @ wide[1].transpose(-2, -1) * (scale * _LOG2_E)
    peak = logits.amax(dim=-1)
    weights = torch.exp2(logits - peak[..., None])
    share = 1 / weights.sum(dim=-1)
    out = (weights * share[..., None]) @ wide[2]
    rows = (weights * share[..., None])[:, :, :num_class_tokens, num_class_tokens:].contiguous()
    return out.to(v.dtype), peak, share, rows


@attend_rows.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, num_class_tokens: int, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, tokens, _ = q.shape
    line = q.new_empty((batch, heads, tokens), dtype=torch.float32)
    rows = q.new_empty((batch, heads, num_class_tokens, tokens - num_class_tokens), dtype=torch.float32)
    return torch.empty_like(v, memory_format=torch.contiguous_format), line, torch.empty_like(line), rows


@torch.library.custom_op("wsss_rt::average_rows", mutates_args=())
def average_rows(rows: Tensor, before: Tensor, weight: float) -> Tensor:
    """``before`` (B, C, N) plus ``weight`` times the mean over heads of ``rows`` (B, H, C, N)."""
    return before + weight * rows.mean(dim=1)


@average_rows.register_fake
def _(rows: Tensor, before: Tensor, weight: float) -> Tensor:
    return torch.empty_like(before)


@torch.library.custom_op("wsss_rt::add_affinity", mutates_args=())
def add_affinity(
    q: Tensor, k: Tensor, peak: Tensor, share: Tensor, before: Tensor, scale: float, weight: float
) -> Tensor:
    """``before`` (B, N, N) plus ``weight`` times the head mean of the attention between the last N tokens."""
    patches = before.shape[-1]
    q, k = q[:, :, -patches:].float(), k[:, :, -patches:].float()
    logits = q @ k.transpose(-2, -1) * (scale * _LOG2_E)
    attention = torch.exp2(logits - peak[:, :, -patches:, None]) * share[:, :, -patches:, None]
    return before + weight * attention.mean(dim=1)


@add_affinity.register_fake
def _(
    q: Tensor, k: Tensor, peak: Tensor, share: Tensor, before: Tensor, scale: float, weight: float
) -> Tensor:
    return torch.empty_like(before)


def attention_aggregate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_class_tokens: int,
    class_map: Tensor | None,
    affinity: Tensor | None,
    weight: float,
    *,
    scale: float,
) -> Tensor:
    """As the dispatcher of this folder; accumulators are changed by a copy, which export makes an edge."""
    classes = num_class_tokens if class_map is not None else 0
    batch, heads, tokens, _ = q.shape
    line = (torch.float32, (batch, heads, tokens))
    rows_like = (torch.float32, (batch, heads, classes, tokens - classes))
    out, peak, share, rows = _call(
        "attend_rows",
        (q, k, v),
        [(v.dtype, v.shape), line, line, rows_like],
        num_class_tokens=classes,
        scale=scale,
    )
    if class_map is not None:
        averaged = (rows, class_map.clone())
        like = [(torch.float32, class_map.shape)]
        class_map.copy_(_call("average_rows", averaged, like, weight=weight)[0])
    if affinity is not None:
        inputs = (q, k, peak, share, affinity.clone())
        like = [(torch.float32, affinity.shape)]
        affinity.copy_(_call("add_affinity", inputs, like, scale=scale, weight=weight)[0])
    return out


def _call(
    name: str,
    inputs: tuple[Tensor, ...],
    outputs: Sequence[tuple[torch.dtype, Sequence[int]]],
    **attributes: int | float,
) -> Sequence[Tensor]:
    """The operator, or its node where an ONNX graph is made."""
    if torch.onnx.is_in_onnx_export():
        return plugin_node(name, inputs, attributes, outputs)
    found = getattr(torch.ops.wsss_rt, name)(*inputs, *attributes.values())
    return found if isinstance(found, tuple) else (found,)
