"""What L2G's global net learns from the local one (Jiang et al., CVPR 2022, sections 3.2 and 3.3).

Local views are square crops of the global one. What the local net says of a crop, cleaned of classes that the
image does not show, is the target of what the global net says of the same place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

#: How saliency enters the target. ``soft``: the released code; ``piecewise``: the paper's equation.
TRANSFERS = ("soft", "piecewise")
#: What the background's target is: whether the local net sees background there, or how much.
BACKGROUND_TARGETS = ("binary", "soft")
#: Threshold on saliency in the paper's variant.
_SALIENT = 0.5
_EPSILON = 1e-8


def local_boxes(
    size: tuple[int, int], view: int, count: int, *, corners: bool, random: np.random.RandomState
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Places of the local views of one image.

    Args:
        size: (H, W) of the global view, at least ``view``.
        view: side of a local one.
        count: how many.
        corners: the first four lie in the corners (PASCAL VOC's script); all at random otherwise (COCO's).
        random: offsets are drawn from it, row before column.

    Returns:
        (count, 4) int64: left, top, right, bottom; the latter two exclusive.
    """
    down, right = size[0] - view, size[1] - view
    starts = [(0, 0), (down, 0), (0, right), (down, right)][: count if corners else 0]
    while len(starts) < count:
        # one free pixel less than there is, as in the official code
        starts.append((int(random.randint(0, max(down, 1))), int(random.randint(0, max(right, 1)))))
    return np.array([(left, top, left + view, top + view) for top, left in starts], np.int64)


def crop_views(images: Tensor, boxes: Tensor) -> Tensor:
    """(K, C, v, v) crops of (B, C, H, W) at (K, 5) boxes: number of the image, left, top, right, bottom."""
    return torch.stack(
        [images[i, :, top:bottom, left:right] for i, left, top, right, bottom in boxes.tolist()]
    )


def local_attention(featmap: Tensor, labels: Tensor) -> Tensor:
    """What a local net is sure of: rectified, each channel's peak 1, classes that are absent 0.

    Args:
        featmap: (K, C + 1, h, w) of the local views; background is last, and always kept.
        labels: (K, C) in {0, 1}.

    Returns:
        (K, C + 1, h, w) in 0..1.
    """
    attention = functional.relu(featmap)
    attention = attention / (attention.amax(dim=(2, 3), keepdim=True) + _EPSILON)
    kept = torch.cat((labels, torch.ones_like(labels[:, :1])), dim=1)
    return attention * kept[:, :, None, None]


def winner_takes_all(attention: Tensor) -> Tensor:
    """Where a channel is the largest, its value; 0 elsewhere. Of equal ones the first wins."""
    best = attention.argmax(dim=1, keepdim=True)
    return torch.zeros_like(attention).scatter(1, best, attention.gather(1, best))


def shape_target(
    attention: Tensor, saliency: Tensor, *, threshold: float, background: str = "binary"
) -> Tensor:
    """Target of the released code: saliency where the winner is a class, its complement where background is.

    Args:
        attention: of :func:`winner_takes_all`.
        saliency: (K, 1, v, v) of the local views in 0..1, not binarised.
        threshold: from which attention counts.
        background: one of :data:`BACKGROUND_TARGETS`; VOC's script has the first, COCO's the second.
    """
    small = _on_grid(saliency, attention)
    seen = (attention > threshold).to(attention.dtype)
    without = seen[:, -1:] if background == "binary" else attention[:, -1:]
    return torch.cat((seen[:, :-1] * small, without * (1 - small)), dim=1)


def piecewise_target(attention: Tensor, saliency: Tensor, *, threshold: float) -> Tensor:
    """Target of the paper: the salient part of each class, or where nothing is salient its attention.

    Args:
        attention: of :func:`local_attention`, (K, C + 1, h, w); background does not take part.
        saliency: (K, 1, v, v) of the local views in 0..1; more than a half counts as salient.
        threshold: from which attention counts; 0.1 in the paper.

    Returns:
        (K, C, h, w).
    """
    of_classes = attention[:, :-1]
    salient = (_on_grid(saliency, attention) > _SALIENT).to(attention.dtype)
    shapes = (of_classes > threshold).to(attention.dtype) * salient
    empty = salient.sum(dim=(1, 2, 3), keepdim=True) == 0
    return torch.where(empty, of_classes, shapes)


def align(featmap: Tensor, boxes: Tensor, grid: tuple[int, int], *, stride: int = 8) -> Tensor:
    """What the global net says of the local views' places: softmax over channels, (K, C + 1, *grid).

    One bilinear sample a bin. At corners it lies half a cell off: the convention of the released code.

    Args:
        featmap: (B, C + 1, h, w) of the global view.
        boxes: (K, 5) number of the image, left, top, right, bottom in pixels.
        grid: rows and columns of the local maps.
        stride: pixels per cell.
    """
    from torchvision.ops import roi_align

    aligned = roi_align(
        featmap, boxes.to(featmap.dtype), output_size=grid, spatial_scale=1 / stride, sampling_ratio=-1
    )
    return aligned.softmax(dim=1)


def transfer_loss(aligned: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over views, channels and cells; a target without background takes no part in it."""
    return functional.mse_loss(aligned[:, : target.shape[1]], target)


def _on_grid(saliency: Tensor, attention: Tensor) -> Tensor:
    return functional.interpolate(saliency, size=attention.shape[-2:], mode="nearest")
