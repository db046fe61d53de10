"""A peer to measure beside: MCTformer-V2 on DeiT-S in plain PyTorch, in the published order of operations.

One image at a time, then its mirror image; the attention of all heads and layers is kept until the end;
affinity of patches, resizing, tags, sum, min-max; then pydensecrf2. Our own code, written from the paper
(Xu et al., CVPR 2022, sections 3.1 to 3.4) and from what the official order of operations is known to be; it
takes the official state dict. Nothing here is tuned, and nothing is slowed down: eager PyTorch in inference
mode on all processors, in float32 as published, or with autocast to bfloat16.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

HEADS, LAYERS, PATCH, GRID, EPSILON = 6, 12, 16, 14, 1e-8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# of the CRF behind MCTformer's pseudo-labels
CRF_STEPS, LEAST_PROBABILITY = 10, 1e-5


class Peer(nn.Module):
    """MCTformer-V2.

    Args:
        state: official state dict.
        layers_fused: K, last layers whose class-to-patch attention is summed.
        bfloat16: run under PyTorch's autocast: matrix products in bfloat16, norms and softmax in float32.
    """

    def __init__(self, state: Mapping[str, Tensor], *, layers_fused: int = 3, bfloat16: bool = False) -> None:
        super().__init__()
        self.weights = dict(state)
        self.classes, self.layers_fused = state["cls_token"].shape[1], layers_fused
        self.bfloat16 = bfloat16

    @torch.inference_mode()
    def forward(self, image: Tensor) -> Tensor:
        """Refined maps (C, rows, columns) float32 of one normalised image (1, 3, H, W)."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            return self._maps(image).float()

    def _maps(self, image: Tensor) -> Tensor:
        take, classes = self.weights, self.classes
        patches = F.conv2d(
            image, take["patch_embed.proj.weight"], take["patch_embed.proj.bias"], stride=PATCH
        )
        rows, columns = patches.shape[2:]
        x = torch.cat([take["cls_token"], patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._positions(rows, columns)
        attention = []
        for index in range(LAYERS):
            x, weights = self._block(x, f"blocks.{index}.")
            attention.append(weights)
        tokens = x[:, classes:].transpose(1, 2).reshape(1, -1, rows, columns)
        cam = F.relu(F.conv2d(tokens, take["head.weight"], take["head.bias"], padding=1))[0]
        # (layers, T, T): the stack of all heads is kept until here, as published
        mean = torch.stack(attention)[:, 0].mean(dim=1)
        of_classes = mean[-self.layers_fused :, :classes, classes:].sum(dim=0)
        fused = of_classes.reshape(classes, rows, columns) * cam
        affinity = mean[:, classes:, classes:].sum(dim=0)
        refined = affinity @ fused.flatten(1).transpose(0, 1)
        return refined.transpose(0, 1).reshape(classes, rows, columns)

    def _positions(self, rows: int, columns: int) -> Tensor:
        stored, classes = self.weights["pos_embed"], self.classes
        if (rows, columns) == (GRID, GRID):
            return stored
        grid = stored[:, classes:].reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
        # a tenth of a token more than is needed keeps the rounding of the size safe, as published
        factor = ((rows + 0.1) / GRID, (columns + 0.1) / GRID)
        grid = F.interpolate(grid, scale_factor=factor, mode="bicubic")
        return torch.cat([stored[:, :classes], grid.flatten(2).transpose(1, 2)], dim=1)

    def _block(self, x: Tensor, prefix: str) -> tuple[Tensor, Tensor]:
        def linear(name: str, values: Tensor) -> Tensor:
            return F.linear(
                values, self.weights[f"{prefix}{name}.weight"], self.weights[f"{prefix}{name}.bias"]
            )

        def norm(name: str, values: Tensor) -> Tensor:
            weight, bias = self.weights[f"{prefix}{name}.weight"], self.weights[f"{prefix}{name}.bias"]
            return F.layer_norm(values, (values.shape[-1],), weight, bias, 1e-6)

        batch, length, width = x.shape
        qkv = linear("attn.qkv", norm("norm1", x)).reshape(batch, length, 3, HEADS, width // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * (width // HEADS) ** -0.5).softmax(dim=-1)
        x = x + linear("attn.proj", (weights @ value).transpose(1, 2).reshape(batch, length, width))
        return x + linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("norm2", x)))), weights


def class_maps(peer: Peer, image: NDArray[np.uint8], present: list[int]) -> NDArray[np.float32]:
    """Normalised maps (len(present), H, W) in 0..1 of an image at scale 1 and of its mirror image.

    Args:
        peer: the model.
        image: (H, W, 3) uint8 RGB.
        present: 0-based classes that the tags name.
    """
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)
    normal = ((pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[None]
    total = torch.zeros(peer.classes, height, width)
    tags = torch.zeros(peer.classes, 1, 1)
    tags[present] = 1
    for index, view in enumerate((normal, normal.flip(3))):
        maps = (
            F.interpolate(peer(view)[None], (height, width), mode="bilinear", align_corners=False)[0] * tags
        )
        total += maps.flip(2) if index else maps
    kept = total[present].numpy()
    low = kept.min(axis=(1, 2), keepdims=True)
    high = kept.max(axis=(1, 2), keepdims=True)
    return np.asarray((kept - low) / (high - low + EPSILON), np.float32)


def crf_mask(
    image: NDArray[np.uint8], maps: NDArray[np.float32], present: list[int], background: float
) -> NDArray[np.uint8]:
    """(H, W) mask of the best of background and classes after pydensecrf2.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: (len(present), H, W) in 0..1.
        present: 0-based class of each map.
        background: constant score of the background.
    """
    from pydensecrf.densecrf import DenseCRF2D

    height, width = image.shape[:2]
    scores = np.concatenate([np.full((1, height, width), background, np.float32), maps])
    crf = DenseCRF2D(width, height, len(scores))
    unary = -np.log(np.clip(scores, LEAST_PROBABILITY, 1))
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(len(scores), -1), np.float32))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.array(image, order="C"), compat=10)
    best = np.asarray(crf.inference(CRF_STEPS)).argmax(axis=0).reshape(height, width)
    return np.array([0, *(index + 1 for index in present)], np.uint8)[best]


def label(peer: Peer, path: Path, present: list[int], out: Path, background: float) -> dict[str, float]:
    """One photograph to its mask, from file to file; milliseconds by stage, named as the labeller's are."""
    times: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        times[name] = 1e3 * (time.perf_counter() - started)

    with stage("decode"), Image.open(path) as opened:
        image = np.asarray(opened.convert("RGB"))
    with stage("infer"):
        maps = class_maps(peer, image, present)
    with stage("refine"):
        mask = crf_mask(image, maps, present, background)
    with stage("write"):
        Image.fromarray(mask).save(out)
    return times
