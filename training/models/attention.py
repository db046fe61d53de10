"""Transformer blocks of timm, run with or without reading their attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

# training on the CPU: up to about this many tokens, forming the attention matrix took half the time of the
# fused kernel, whose backward pass recomputes it
_EXPLICIT_TOKENS = 1024

Observer = Callable[[int, Tensor, Tensor], None]
Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


class AttentionSink(Protocol):
    """Takes from each layer's attention what maps need of it."""

    def wants(self, layer: int) -> bool:
        """Whether it takes anything of this layer (from 0)."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """The attention's output (B, H, T, d), of which it takes what it wants on the way."""
        ...

    def add(self, layer: int, attention: Tensor) -> None:
        """The same of attention that exists anyway, its mean over heads (B, T, T)."""
        ...


def run_blocks(
    blocks: Iterable[Any],
    tokens: Tensor,
    *,
    sums: AttentionSink | None = None,
    observe: Observer | None = None,
) -> Tensor:
    """Run all blocks; attention is formed only in the layers that ``observe`` asks for, or ``sums`` does
    where no kernel runs.

    Args:
        blocks: timm ``Block`` modules (layer scale, drop path, q/k norm are followed).
        tokens: (B, T, D).
        sums: takes the head-mean attention of the layers that it wants.
        observe: called after each block with its index, output tokens (B, T, D) and attention (B, H, T, T).

    Returns:
        (B, T, D), without a final norm.
    """
    for index, block in enumerate(blocks):
        if observe is None:
            if sums is not None and sums.wants(index):
                tokens = block_summing(block, tokens, sums, index)
            else:
                tokens = block_forward(block, tokens)
            continue
        tokens, attention = block_with_attention(block, tokens)
        if sums is not None and sums.wants(index):
            sums.add(index, attention.mean(dim=1))
        if observe is not None:
            observe(index, tokens, attention)
    return tokens


def block_forward(block: Any, tokens: Tensor) -> Tensor:
    """One block without reading its attention. (B, T, D) to (B, T, D)."""
    attn = block.attn
    q, k, v = project_heads(attn, block.norm1(tokens))
    trained = torch.is_grad_enabled() and not torch.compiler.is_exporting()
    if trained and tokens.device.type == "cpu" and tokens.shape[1] <= _EXPLICIT_TOKENS:
        return _finish(block, tokens, _explicit_attention(attn, q, k, v))
    dropout = attn.attn_drop.p if attn.training else 0.0
    mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=attn.scale)
    return _finish(block, tokens, mixed)


def block_summing(block: Any, tokens: Tensor, sums: AttentionSink, layer: int) -> Tensor:
    """One block whose attention ``sums`` computes, and takes its part of. (B, T, D) to (B, T, D)."""
    attn = block.attn
    if attn.training and attn.attn_drop.p > 0:
        # maps are made of the attention before dropout
        tokens, attention = block_with_attention(block, tokens)
        sums.add(layer, attention.mean(dim=1))
        return tokens
    return block_mixing(block, tokens, partial(sums.attend, layer, scale=float(attn.scale)))


def block_mixing(block: Any, tokens: Tensor, mix: Mix) -> Tensor:
    """One block whose attention is ``mix(q, k, v)``, each (B, H, T, d). (B, T, D) to (B, T, D)."""
    return _finish(block, tokens, mix(*project_heads(block.attn, block.norm1(tokens))))


def block_sampled(
    block: Any, tokens: Tensor, sample: Callable[[Tensor], Tensor], *, mix: Mix | None = None
) -> Tensor:
    """One block in which a sample of the tokens asks and all of them answer; the others end here.

    Query downsampling of Shrunk (SegViT, section 3.3): ``y = x_q + MHA(LN(x_q), LN(x))``, then the MLP.

    Args:
        block: timm ``Block``.
        tokens: (B, T, D).
        sample: (B, T, D) to (B, t, D).
        mix: the attention of (B, H, t, d) to (B, H, T, d) twice; plain where None.

    Returns:
        (B, t, D).
    """
    attn = block.attn
    q, k, v = project_heads(attn, block.norm1(tokens), sample=sample)
    if mix is not None:
        return _finish(block, sample(tokens), mix(q, k, v))
    dropout = attn.attn_drop.p if attn.training else 0.0
    mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=attn.scale)
    return _finish(block, sample(tokens), mixed)


def _explicit_attention(attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # autocast would turn the softmax, the largest tensor here, into float32
    with torch.autocast("cpu", enabled=False):
        attention = torch.softmax(q * attn.scale @ k.transpose(-2, -1), dim=-1)
        return attn.attn_drop(attention) @ v


def block_with_attention(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One block, and its softmaxed attention before dropout.

    Returns:
        Tokens (B, T, D) and attention (B, H, T, T), rows are queries; each row sums to 1.
    """
    attn = block.attn
    q, k, v = project_heads(attn, block.norm1(tokens))
    attention = torch.softmax(q * attn.scale @ k.transpose(-2, -1), dim=-1)
    mixed = attn.attn_drop(attention).to(v.dtype) @ v
    return _finish(block, tokens, mixed), attention


def check_blocks(blocks: Iterable[Any]) -> str | None:
    """Why these blocks can't be run by this module, or None."""
    for block in blocks:
        attn = getattr(block, "attn", None)
        if not all(hasattr(block, name) for name in ("norm1", "norm2", "mlp", "attn")):
            return f"its blocks are {type(block).__name__}, not pre-norm attention and MLP"
        if not all(hasattr(attn, name) for name in ("qkv", "proj", "num_heads", "scale")):
            return f"its attention is {type(attn).__name__}, without a packed qkv projection"
        if getattr(attn, "gate", None) is not None or hasattr(attn, "rope"):
            return "its attention is gated or rotary"
    return None


def project_heads(
    attn: Any, tokens: Tensor, *, sample: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each (B, H, T, d), of normed tokens (B, T, D).

    With ``sample``, (B, T, D) to (B, t, D), queries are those of the sampled tokens alone: (B, H, t, d).
    """
    batch, count, dim = tokens.shape
    if sample is None:
        qkv = attn.qkv(tokens).reshape(batch, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return attn.q_norm(q), attn.k_norm(k), v
    weight, bias = attn.qkv.weight, attn.qkv.bias
    asking = functional.linear(sample(tokens), weight[:dim], None if bias is None else bias[:dim])
    answering = functional.linear(tokens, weight[dim:], None if bias is None else bias[dim:])
    q = asking.reshape(batch, -1, attn.num_heads, dim // attn.num_heads).transpose(1, 2)
    k, v = answering.reshape(batch, count, 2, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(q), attn.k_norm(k), v


def _finish(block: Any, tokens: Tensor, mixed: Tensor) -> Tensor:
    attn = block.attn
    merged = mixed.transpose(1, 2).flatten(2)
    norm = getattr(attn, "norm", None)
    if norm is not None:
        merged = norm(merged)
    update = attn.proj_drop(attn.proj(merged))
    tokens = tokens + block.drop_path1(block.ls1(update))
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
