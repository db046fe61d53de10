"""PSA's affinity net: how much neighbouring cells have in common (Ahn and Kwak, CVPR 2018)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_rt.classes import BACKGROUND, IGNORE
from wsss_rt.errors import UsageError
from wsss_rt.refine.walk_params import RADIUS, STRIDE, pair_offsets
from wsss_rt.training.models.conv_method import ConvMethod
from wsss_rt.training.models.resnet38d import ResNet38d, Taps

_EPSILON = 1e-5


class PSA(ConvMethod):
    """A ResNet-38d whose features tell whether two cells of 8 px belong together; it knows no classes.

    What comes out is for ``wsss_rt.refine.random_walk``: a plane of affinity per neighbour.

    Args:
        backbone: ResNet-38d.
        num_classes: of the data, for the record.
        img_size: side of the training crops; 448 officially.
        radius: distance in cells, exclusive, within which two are a pair.
        freeze_stem: the first two stages keep their weights, as pretrained ones should.
    """

    kind = "affinity"
    graph_outputs = ("affinity",)
    needed_planes = ("low_alpha", "high_alpha")
    new_layers = frozenset(("f8_3", "f8_4", "f8_5", "f9"))

    def __init__(
        self,
        backbone: ResNet38d,
        *,
        num_classes: int,
        img_size: int,
        radius: int = RADIUS,
        freeze_stem: bool = True,
    ) -> None:
        super().__init__(backbone, num_classes=num_classes, img_size=img_size, freeze_stem=freeze_stem)
        if not 2 <= radius <= 16:
            raise UsageError(f"radius {radius} is not in 2..16", fix="the official one is 5")
        self.radius = radius
        fourth, fifth, sixth = backbone.tap_widths
        widths = max(1, fourth // 8), max(1, fifth // 8), max(1, sixth // 16)
        self.trunk = backbone
        self.f8_3 = nn.Conv2d(fourth, widths[0], 1, bias=False)
        self.f8_4 = nn.Conv2d(fifth, widths[1], 1, bias=False)
        self.f8_5 = nn.Conv2d(sixth, widths[2], 1, bias=False)
        self.f9 = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        for layer in (self.f8_3, self.f8_4, self.f8_5):
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def head(self, taps: Taps) -> tuple[Tensor, Tensor]:
        """Input and output of f9, (B, D, h, w) each."""
        parts = (self.f8_3(taps.conv4), self.f8_4(taps.conv5), self.f8_5(taps.conv6))
        joined = torch.cat([functional.elu(part) for part in parts], dim=1)
        return joined, functional.elu(self.f9(joined))

    def affinity(self, images: Tensor) -> Tensor:
        """Affinity of every cell and its neighbours.

        Args:
            images: (B, 3, H, W) float32, normalised; filled up with zeros to whole cells at the right and
                bottom, as the official code does.

        Returns:
            (B, K, h, w) float32 in 0..1, a plane for each of ``pair_offsets(radius)``. What a plane says of a
            neighbour beyond the grid has no meaning.
        """
        return self.forward(whole_cells(images))

    def forward(self, images: Tensor) -> Tensor:
        """:meth:`affinity` of images in whole cells; the entrance of exporters and profilers.

        Other sizes run too, and round up; their last cells see less than zeros around the image.
        """
        return pair_affinity(self.head(self.trunk(images))[1], self.radius).float()

    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Binary cross entropy of pairs within background, within a class, and of different classes.

        Args:
            images: (B, 3, H, W) float32, normalised.
            targets: (B, 2, H, W) uint8, masks of a dense CRF with a low and with a high power of background:
                0 background, class index + 1, 255 outside of the image.

        Returns:
            ``background``, ``class`` and ``different``, weighted 1/4, 1/4 and 1/2.
        """
        labels = cell_labels(whole_cells(targets, IGNORE))
        features = self.head(self.trunk(whole_cells(images)))[1].float()
        return affinity_losses(pair_affinity(features, self.radius), labels, self.radius)

    def official_shapes(self) -> dict[str, tuple[int, ...]]:
        """Keys and shapes of the official state dict."""
        state = self.state_dict()
        return {name.removeprefix("trunk."): tuple(value.shape) for name, value in state.items()}

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict from the official one, which was checked before."""
        return {name: state[name.removeprefix("trunk.")] for name in self.state_dict()}


def whole_cells(planes: Tensor, fill: float = 0) -> Tensor:
    """Planes (..., H, W) filled up at the right and bottom to multiples of 8."""
    below, right = (-side % STRIDE for side in planes.shape[-2:])
    return functional.pad(planes, (0, right, 0, below), value=fill)


def pair_affinity(features: Tensor, radius: int) -> Tensor:
    """exp of minus the mean absolute difference, (B, D, h, w) to (B, K, h, w).

    Neighbours beyond the grid are zeros, so that grids of any size give every plane.
    """
    reach = radius - 1
    rows, columns = features.shape[-2:]
    around = functional.pad(features, (reach, reach, 0, reach))
    planes = [
        (features - around[:, :, dy : dy + rows, reach + dx : reach + dx + columns]).abs().mean(dim=1)
        for dy, dx in pair_offsets(radius)
    ]
    return torch.exp(-torch.stack(planes, dim=1))


def cell_labels(planes: Tensor) -> Tensor:
    """What the two masks say of a cell: the majority of its pixels in each.

    Where the low power says background nobody knows; where the high one does too, it is background; elsewhere
    it is the class of the low one.

    Args:
        planes: (B, 2, H, W) uint8, whole cells, see :meth:`PSA.losses`.

    Returns:
        (B, h, w) int64: 0 background, class index + 1, 255 unknown.
    """
    low, high = (_majority(planes[:, index]) for index in (0, 1))
    labels = torch.where(low == BACKGROUND, torch.full_like(low, IGNORE), low)
    labels = torch.where(high == BACKGROUND, torch.zeros_like(low), labels)
    return torch.where(low == IGNORE, low, labels)


def affinity_losses(affinity: Tensor, labels: Tensor, radius: int) -> dict[str, Tensor]:
    """The three losses of all pairs that begin away from the edges, as the official code takes them.

    Args:
        affinity: (B, K, h, w).
        labels: (B, h, w), see :func:`cell_labels`.
        radius: of the pairs.

    Returns:
        Weighted scalars; a kind that has no pair adds 0.
    """
    reach = radius - 1
    rows, columns = labels.shape[-2:]
    top, left, right = slice(0, max(rows - reach, 0)), reach, columns - reach
    first = labels[:, None, top, left:right]
    second = torch.stack(
        [
            labels[:, dy : dy + max(rows - reach, 0), left + dx : right + dx]
            for dy, dx in pair_offsets(radius)
        ],
        dim=1,
    )
    pairs = affinity[:, :, top, left:right]
    known = (first != IGNORE) & (second != IGNORE)
    same = known & (first == second)
    alike, apart = -torch.log(pairs + _EPSILON), -torch.log(1 + _EPSILON - pairs)

    def mean(values: Tensor, which: Tensor) -> Tensor:
        return (values * which).sum() / (which.sum() + _EPSILON)

    return {
        "background": mean(alike, same & (first == BACKGROUND)) / 4,
        "class": mean(alike, same & (first != BACKGROUND)) / 4,
        "different": mean(apart, known & (first != second)) / 2,
    }


def _majority(mask: Tensor) -> Tensor:
    """The commonest value of each cell, (B, H, W) to (B, H / 8, W / 8); 255 where no pixel is known."""
    # few values occur, and unknown pixels do not vote
    values = torch.tensor([BACKGROUND, *(v for v in mask.unique().tolist() if v not in (BACKGROUND, IGNORE))])
    values = values.to(mask.device)
    votes = torch.stack([mask == value for value in values], dim=1).float()
    most, winner = functional.avg_pool2d(votes, STRIDE).max(dim=1)
    return values[winner].where(most > 0, IGNORE)
