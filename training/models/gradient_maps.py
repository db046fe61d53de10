"""Class-wise localization by the gradient of a class logit with respect to the attention of its token.

Only row 0 of the attention matters, the class token's, and its gradient has a closed form from what the
forward pass knows: no automatic differentiation, all classes at once, one traceable graph. In the last two
blocks the gradient lives on the class token alone and costs next to nothing; each further block takes one
backward pass over all tokens per class. The functions are those of ACR (arXiv 2308.04321, released code).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wsss_rt.training.models.attention import block_with_attention, project_heads

#: What a block contributes; A attention, G gradient of the logit, m mean over heads, + negative values to 0.
GRADIENTS = ("grad", "grad_s", "cam_grad", "cam_grad_s")


@dataclass(frozen=True)
class BlockRecord:
    """Forward pass of one block, kept for its gradient.

    Attributes:
        block: timm's module.
        tokens: input (B, T, D).
        queries, keys, values: (B, H, T, d).
        attention: (B, H, T, T), rows are queries.
        mixed: what attention gathered, before its projection (B, H, T, d).
        middle: after the attention's residual (B, T, D).
        hidden: before the MLP's activation (B, T, M).
        output: (B, T, D).
    """

    block: Any
    tokens: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    attention: Tensor
    mixed: Tensor
    middle: Tensor
    hidden: Tensor
    output: Tensor


def record_block(block: Any, tokens: Tensor) -> BlockRecord:
    """Run a block on (B, T, D) as in evaluation mode, without dropout and stochastic depth."""
    attn, mlp = block.attn, block.mlp
    queries, keys, values = project_heads(attn, block.norm1(tokens))
    attention = torch.softmax(queries * attn.scale @ keys.transpose(-2, -1), dim=-1)
    mixed = attention.to(values.dtype) @ values
    middle = tokens + block.ls1(attn.proj(mixed.transpose(1, 2).flatten(2)))
    hidden = mlp.fc1(block.norm2(middle))
    output = middle + block.ls2(mlp.fc2(mlp.act(hidden)))
    return BlockRecord(block, tokens, queries, keys, values, attention, mixed, middle, hidden, output)


def check_closed_form(blocks: Iterable[Any]) -> str | None:
    """Why the closed form does not hold for these blocks, or None."""
    for block in blocks:
        attn, mlp = block.attn, block.mlp
        if not all(_is_nothing(attn, name) for name in ("q_norm", "k_norm", "norm")):
            return "its attention normalises queries, keys or its output"
        if not all(hasattr(mlp, name) for name in ("fc1", "act", "fc2")) or not _is_nothing(mlp, "norm"):
            return "its MLP is not two plain layers"
        if not isinstance(mlp.act, nn.GELU) or mlp.act.approximate != "none":
            return "its activation is not the exact GELU"
        if not all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2)):
            return "its norms are not LayerNorm"
    return None


def closed_form_gradients(records: Sequence[BlockRecord], weight: Tensor) -> list[Tensor]:
    """Gradient of every class logit with respect to the attention row of token 0, forward only.

    Args:
        records: the last blocks, in their order.
        weight: (C, D) of the linear layer that gives logits from token 0 of the last output.

    Returns:
        For each record (B, H, C, T).
    """
    batch = records[-1].output.shape[0]
    grad = weight[None, :, None, :].expand(batch, -1, -1, -1)
    rows: list[Tensor] = []
    on_all = False  # does `grad` hold all tokens, or token 0 alone?
    for index in reversed(range(len(records))):
        record = records[index]
        at_middle, at_heads = _to_heads(record, grad, on_all=on_all)
        rows.append(at_heads[..., 0, :] @ record.values.transpose(-2, -1))
        if index > 0:
            to_all = index > 1  # the first block needs the gradient of its token 0 alone
            grad = _to_input(record, at_middle, at_heads, on_all=on_all, to_all=to_all)
            on_all = to_all
    return rows[::-1]


def autograd_gradients(
    blocks: Iterable[Any], tokens: Tensor, head: nn.Module, *, rows: int | None = 1
) -> tuple[list[Tensor], list[Tensor]]:
    """The same by automatic differentiation, one class after another; what the closed form is held against.

    Args:
        blocks: the last blocks.
        tokens: their input (B, T, D).
        head: token 0 of the last output (B, D) to logits (B, C).
        rows: leading rows of the attention to keep; None for all.

    Returns:
        For each block the gradient (B, H, C, rows, T), and the attention (B, H, T, T).
    """
    attentions: list[Tensor] = []
    with torch.enable_grad():
        sequence = tokens.detach().requires_grad_()
        for block in blocks:
            sequence, attention = block_with_attention(block, sequence)
            attentions.append(attention)
        logits = head(sequence[:, 0])
        per_class = []
        for index in range(logits.shape[-1]):
            grads = torch.autograd.grad(logits[:, index].sum(), attentions, retain_graph=True)
            per_class.append([grad[:, :, :rows] for grad in grads])
    gradients = [torch.stack(of_block, dim=2) for of_block in zip(*per_class, strict=True)]
    return gradients, [attention.detach() for attention in attentions]


def class_map(gradient: Tensor, attention: Tensor, function: str) -> Tensor:
    """What one block says of every class and patch.

    Args:
        gradient: (B, H, C, T), row of the class token.
        attention: (B, H, T), likewise.
        function: ``"grad"`` m[G+]; ``"grad_s"`` m[G+]^2; ``"cam_grad"`` m[(GA)+]; ``"cam_grad_s"``
            m[(GA)+] m[G+].

    Returns:
        (B, C, N), nonnegative; blocks are summed, never multiplied.
    """
    raised = gradient.clamp(min=0).mean(dim=1)
    if function.startswith("cam_"):
        weighted = (gradient * attention[:, :, None]).clamp(min=0).mean(dim=1)
        value = weighted * raised if function.endswith("_s") else weighted
    else:
        value = raised.square() if function.endswith("_s") else raised
    return value[..., 1:]


def _to_heads(record: BlockRecord, grad: Tensor, *, on_all: bool) -> tuple[Tensor, Tensor]:
    """Back through the MLP and the output projection.

    Takes the gradient (B, C, R, D) at the output; gives it at ``middle`` (B, C, R, D) and ``mixed``
    (B, H, C, R, d). R tokens carry a gradient, all or the first.
    """
    block, mlp, attn = record.block, record.block.mlp, record.block.attn
    rows = _leading(on_all)
    at_hidden = (_scaled(block.ls2, grad) @ mlp.fc2.weight) * _gelu_slope(record.hidden[:, None, rows])
    through = _norm_gradient(block.norm2, record.middle[:, None, rows], at_hidden @ mlp.fc1.weight)
    at_middle = grad + through
    merged = _scaled(block.ls1, at_middle) @ attn.proj.weight
    return at_middle, merged.unflatten(-1, (attn.num_heads, -1)).permute(0, 3, 1, 2, 4)


def _to_input(
    record: BlockRecord, at_middle: Tensor, at_heads: Tensor, *, on_all: bool, to_all: bool
) -> Tensor:
    """Back through attention and its norm, to the input gradient (B, C, T or 1, D).

    The softmax's backward pass needs sum_j A_ij dA_ij, which is the gathered value times its gradient; so no
    T x T matrix is formed unless the gradient comes from all tokens and goes to all.
    """
    attn = record.block.attn
    sources, wanted = _leading(on_all), _leading(to_all)
    own = _leading(on_all and to_all)  # queries of tokens that carry a gradient, and whose input is wanted
    mean = (at_heads * record.mixed[:, :, None, sources]).sum(dim=-1, keepdim=True)

    def at_scores(rows: slice, columns: slice) -> Tensor:
        spread = _per_class(at_heads[..., rows, :], record.values[:, :, columns].transpose(-2, -1))
        scores = record.attention[:, :, None, rows, columns] * (spread - mean[..., rows, :])
        return scores * attn.scale

    to_query, to_key, to_value = attn.qkv.weight.chunk(3)
    at_queries = _per_class(at_scores(own, slice(None)), record.keys)
    at_keys = _per_class(at_scores(sources, wanted).transpose(-2, -1), record.queries[:, :, sources])
    at_values = record.attention[:, :, None, sources, wanted].transpose(-2, -1) @ at_heads
    from_queries = _merge(at_queries) @ to_query
    normed = _merge(at_keys) @ to_key + _merge(at_values) @ to_value
    same_tokens = on_all or not to_all
    normed = _add_leading(normed, from_queries, same_tokens=same_tokens)
    at_input = _norm_gradient(record.block.norm1, record.tokens[:, None, wanted], normed)
    return _add_leading(at_input, at_middle[:, :, wanted], same_tokens=same_tokens)


def _leading(everything: bool) -> slice:
    return slice(None) if everything else slice(0, 1)


def _add_leading(whole: Tensor, part: Tensor, *, same_tokens: bool) -> Tensor:
    """Add a part (B, C, 1, D) to token 0 of (B, C, T, D), or to all where both hold the same tokens."""
    if same_tokens:
        return whole + part
    return torch.cat((whole[:, :, :1] + part, whole[:, :, 1:]), dim=2)


def _per_class(left: Tensor, right: Tensor) -> Tensor:
    """(B, H, C, R, n) @ (B, H, n, m) without a copy of the right side per class."""
    return (left.flatten(2, 3) @ right).reshape(*left.shape[:4], right.shape[-1])


def _merge(heads: Tensor) -> Tensor:
    """(B, H, C, R, d) to (B, C, R, H * d)."""
    return heads.permute(0, 2, 3, 1, 4).flatten(3)


def _scaled(scale: Any, grad: Tensor) -> Tensor:
    """Through a layer scale, or the identity in its place; neither turns the gradient."""
    gamma = getattr(scale, "gamma", None)
    return grad if gamma is None else grad * gamma


def _gelu_slope(x: Tensor) -> Tensor:
    below = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    return below + x * torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)


def _norm_gradient(norm: nn.LayerNorm, x: Tensor, grad: Tensor) -> Tensor:
    """Through a LayerNorm whose input was ``x``."""
    centred = x - x.mean(dim=-1, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + norm.eps)
    hat, grad = centred * inverse, grad * norm.weight
    along = (grad * hat).mean(dim=-1, keepdim=True)
    return inverse * (grad - grad.mean(dim=-1, keepdim=True) - hat * along)


def _is_nothing(owner: Any, name: str) -> bool:
    module = getattr(owner, name, None)
    return module is None or isinstance(module, nn.Identity)
