"""All-pairs consistency: attention must follow its image through a lossless view (ACR, arXiv 2308.04321).

Two views of an image are run, the attention of the second is put back into the order of the first, and what
differs is the loss: the rows of the class tokens, and all pairs of patches. Any method whose attention can be
read can train with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsss_rt.errors import UsageError, nearest

#: Losses of one view, its head-mean attention per layer (B, T, T), and its grid (rows, columns).
OneView = tuple[dict[str, Tensor], list[Tensor], tuple[int, int]]


@dataclass(frozen=True)
class View:
    """A mirror image, then quarter turns: one of the eight ways to lay a rectangle onto the pixel grid.

    Attributes:
        mirrored: left and right change places first.
        turns: quarter turns counter-clockwise.
    """

    mirrored: bool = False
    turns: int = 0

    def apply(self, images: Tensor) -> Tensor:
        """(..., H, W) to (..., H, W), or to (..., W, H) after an odd number of turns."""
        if self.mirrored:
            images = images.flip(-1)
        return torch.rot90(images, self.turns, (-2, -1))

    def places(self, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
        """Where each token of the image lies in the view's token sequence.

        Args:
            grid: rows and columns of the image, not of the view.
            device: of the result.

        Returns:
            (N,) int64, a permutation. Indexing what the view gave with it restores the image's order.
        """
        rows, columns = grid
        tokens = torch.arange(rows * columns, device=device).reshape(rows, columns)
        return self.apply(tokens).flatten().argsort()


#: Views by name. The released code has but the first.
VIEWS = {
    "flip": View(mirrored=True),
    "flip-vertical": View(mirrored=True, turns=2),
    "turn-90": View(turns=1),
    "turn-180": View(turns=2),
    "turn-270": View(turns=3),
    "transpose": View(mirrored=True, turns=1),
    "transverse": View(mirrored=True, turns=3),
}


def find_view(name: str) -> View:
    """The view of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in VIEWS:
        raise UsageError(f"unknown view {name!r}", fix=nearest(name, VIEWS))
    return VIEWS[name]


class HeadMeans:
    """Head-mean attention of every layer; pass it as ``observe`` to ``run_blocks``.

    Attributes:
        layers: (B, T, T) per layer, float32 or wider.
    """

    def __init__(self) -> None:
        self.layers: list[Tensor] = []

    def __call__(self, layer: int, tokens: Tensor, attention: Tensor) -> None:
        """Take the attention (B, H, T, T) of a layer."""
        mean = attention.mean(dim=1)
        self.layers.append(mean.to(torch.promote_types(mean.dtype, torch.float32)))


def realign(
    attention: Tensor, view: View, grid: tuple[int, int], *, class_tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """Attention of a view in the token order of the image.

    Args:
        attention: (..., T, T) with the class tokens first; rows are queries.
        view: what the image went through.
        grid: rows and columns of the image, not of the view.
        class_tokens: how many there are; their columns are left out.

    Returns:
        Class rows (..., class_tokens, N), and patch pairs (..., N, N) with both axes permuted.
    """
    places = view.places(grid, attention.device)
    patches = attention[..., class_tokens:]
    of_classes = patches[..., :class_tokens, :][..., places]
    pairs = patches[..., class_tokens:, :][..., places, :][..., places]
    return of_classes, pairs


def consistency(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    view: View,
    grid: tuple[int, int],
    *,
    class_tokens: int = 1,
) -> tuple[Tensor, Tensor]:
    """Region-activation and all-pairs affinity consistency: mean absolute differences over all layers.

    Args:
        first: attention (B, T, T) of the image per layer.
        second: of its view.
        view: what the image went through; sizes that are no multiple of the patch make it lossy.
        grid: rows and columns of the image.
        class_tokens: how many lead the sequence.

    Returns:
        Two scalars; both are of the order of 1 / T, hence the large weights in use.
    """
    identity = View()
    activation, affinity = [], []
    for of_image, of_view in zip(first, second, strict=True):
        rows, pairs = realign(of_image, identity, grid, class_tokens=class_tokens)
        moved_rows, moved_pairs = realign(of_view, view, grid, class_tokens=class_tokens)
        activation.append((rows - moved_rows).abs().mean())
        affinity.append((pairs - moved_pairs).abs().mean())
    # all layers are of one size, so this is the mean over all elements
    return torch.stack(activation).mean(), torch.stack(affinity).mean()


def check_consistency(value: str | None) -> str | None:
    """Return an option ``consistency`` if there is such a one.

    Raises:
        UsageError: there is not.
    """
    if value not in (None, "acr"):
        raise UsageError(f"unknown consistency {value!r}", fix="'acr', or leave it out")
    return value


def mirrored_losses(
    of_view: Callable[[Tensor, HeadMeans | None], tuple[dict[str, Tensor], tuple[int, int]]],
    images: Tensor,
    *,
    consistency: str | None,
    alpha: float,
    class_tokens: int = 1,
) -> dict[str, Tensor]:
    """Losses of a method that may train with consistency: of images, or of these and their mirror images.

    Args:
        of_view: the method's own losses of images, and their grid; an observer, where it is given one, must
            see the attention of every layer that is to agree.
        images: (B, 3, H, W).
        consistency: ``"acr"``, or None.
        alpha: as :func:`paired_losses` takes it.
        class_tokens: likewise.
    """
    if consistency is None:
        return of_view(images, None)[0]

    def run(view: Tensor) -> OneView:
        means = HeadMeans()
        losses, grid = of_view(view, means)
        return losses, means.layers, grid

    return paired_losses(run, images, view=VIEWS["flip"], alpha=alpha, class_tokens=class_tokens)


def paired_losses(
    run: Callable[[Tensor], OneView],
    images: Tensor,
    *,
    view: View,
    alpha: float,
    class_tokens: int = 1,
) -> dict[str, Tensor]:
    """Losses of an image and its view, and how far their attention differs; gradients flow through both.

    Args:
        run: losses and attention of images.
        images: (B, 3, H, W).
        view: gives the second images.
        alpha: weight of both consistency losses.
        class_tokens: how many lead the sequence.

    Returns:
        The losses of ``run``, again with ``_view`` appended for the second images, and ``activation`` and
        ``affinity``, which have been weighted.
    """
    of_image, first, grid = run(images)
    of_view, second, _ = run(view.apply(images))
    activation, affinity = consistency(first, second, view, grid, class_tokens=class_tokens)
    return {
        **of_image,
        **{f"{name}_view": loss for name, loss in of_view.items()},
        "activation": alpha * activation,
        "affinity": alpha * affinity,
    }
