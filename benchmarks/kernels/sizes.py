"""Sizes that every part of ``gpu.py`` measures."""

from __future__ import annotations

import torch

CLASSES, LAYERS, DIM = 20, 12, 64
# images of 224, of 500x375 and of 768x768 px, with 20 class tokens
SIZES = ((64, 216), (16, 733), (4, 2324))
# DeiT-S and ViT-B
HEADS = (6, 12)
TYPES = (torch.bfloat16, torch.float16, torch.float32)
# 1536x1536 px in patches of 16
LARGE = 96 * 96 + CLASSES


def shapes(small: bool) -> tuple[tuple[int, int, int], ...]:
    """(B, H, T) to judge by; ``small`` for the interpreter."""
    return ((1, 2, 37),) if small else tuple((2, 6, tokens) for _, tokens in SIZES)


def name_of(batch: int, tokens: int, heads: int) -> str:
    """Of a row."""
    return f"B{batch}-T{tokens}-H{heads}"
