"""What every method shares: the entrances, the official state dict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from wsss_rt.errors import WsssError
from wsss_rt.model_card import Kind, MapRule, Recommended


@dataclass(frozen=True)
class Localization:
    """What a localizer says of a batch.

    Attributes:
        scores: (B, C) float32 logits.
        maps: (B, C, rows, columns) float32, one value per patch token; scale and offset are the method's own.
        extras: named intermediates, empty unless asked for; without the batch dimension when B is 1, but for
            logits and what lists all layers first (token refinement keeps it everywhere).
    """

    scores: Tensor
    maps: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """Base of all methods, whatever they learn and on whatever trunk.

    Args:
        num_classes: C.
        img_size: see below.
        patch_size: see below.

    Attributes:
        kind: of its model card.
        graph_outputs: names of what ``forward`` returns, in its order.
        num_classes: C, without background.
        img_size: side in pixels of the training images.
        patch_size: pixels per token, or per cell, of what comes out.
        needed_planes, optional_planes: what ``losses`` wants, or can use, beside images and targets; keys of
            ``training.data.planes.PLANES``.
        official_leftovers: how keys begin that an official state dict may hold and nothing reads.
        operators: of ``wsss_rt.kernels`` inside, whose kernels a GPU has to prove before it runs them.
    """

    kind: ClassVar[Kind]
    graph_outputs: ClassVar[tuple[str, ...]] = ("scores", "maps")
    needed_planes: ClassVar[tuple[str, ...]] = ()
    optional_planes: ClassVar[tuple[str, ...]] = ()
    official_leftovers: tuple[str, ...] = ()
    operators: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, num_classes: int, img_size: int, patch_size: int) -> None:
        super().__init__()
        self.num_classes, self.img_size, self.patch_size = num_classes, img_size, patch_size

    @abstractmethod
    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Named float32 scalars that the training loop sums.

        Args:
            images: (B, 3, H, W) float32, normalised.
            targets: what the kind of method learns from.

        A method with planes takes them as a third argument, (B, K, H, W) uint8 in the order of their names.
        """

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must not touch, beside biases and one-dimensional ones."""
        return set()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that did not come with the backbone and may learn faster than it; here none."""
        yield from ()

    def official_shapes(self) -> dict[str, tuple[int, ...]]:
        """Keys and shapes of the official state dict; methods whose names differ from it override this."""
        return {name: tuple(value.shape) for name, value in self.state_dict().items()}

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict from the official one, which was checked before."""
        return dict(state)


class Localizer(Method):
    """Base, beside that of its trunk, of the methods that learn from image-level tags.

    Attributes:
        map_rule: how the official code makes pixels of the maps.
        official_settings: those of official generation, for checkpoints that bring none.
    """

    kind = "localizer"
    map_rule: ClassVar[MapRule] = MapRule()
    official_settings: ClassVar[Recommended] = Recommended()

    @abstractmethod
    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Named float32 scalars that the training loop sums.

        Args:
            images: (B, 3, H, W) float32, normalised.
            targets: (B, C) in {0, 1}, float.
        """

    @abstractmethod
    def localize(self, images: Tensor, extras: bool = False) -> Localization:
        """Scores and maps of a batch: one traceable graph, refinement inside.

        Args:
            images: (B, 3, H, W) float32, normalised; H and W need not be multiples of the patch (of a ViT,
                the remainder at the right and bottom is not seen).
            extras: also return named intermediates.
        """

    def localize_each(self, images: Tensor, variants: Sequence[Mapping[str, Any]]) -> list[Localization]:
        """:meth:`localize` once per set of method options; methods that can share the forward pass do.

        Args:
            images: as for :meth:`localize`.
            variants: options by name, e.g. ``{"attention_type": "patchcam"}``; the model's own otherwise.
        """
        found = []
        for options in variants:
            with options_set(self, options):
                found.append(self.localize(images))
        return found

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and maps of :meth:`localize`; the entrance of exporters and profilers."""
        out = self.localize(images)
        return out.scores, out.maps


@contextmanager
def options_set(model: nn.Module, options: Mapping[str, Any]) -> Iterator[None]:
    """Attributes of a model, changed for a while."""
    kept = {name: getattr(model, name) for name in options}
    try:
        for name, value in options.items():
            setattr(model, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(model, name, value)


def official_shapes(model: Method) -> dict[str, tuple[int, ...]]:
    """Key to shape of the official repository's state dict for this model."""
    return model.official_shapes()


def load_official(model: Method, state: Mapping[str, Any]) -> None:
    """Load the official repository's state dict, strictly.

    Args:
        model: changed in place.
        state: key to tensor, or a checkpoint ``{"model": that}``.

    Raises:
        WsssError: keys are missing, extra or of another shape; all are listed, and nothing was loaded.
    """
    if isinstance(state.get("model"), Mapping):
        state = state["model"]
    expected = model.official_shapes()
    missing = [key for key in expected if key not in state]
    leftovers = model.official_leftovers
    extra = [key for key in state if key not in expected and not key.startswith(leftovers)]
    misshapen = [
        f"{key} {_shape_of(state[key])} instead of {shape}"
        for key, shape in expected.items()
        if key in state and _shape_of(state[key]) != shape
    ]
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys)}"
        for kind, keys in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise WsssError(
            f"the state dict is not one of {type(model).__name__} with {model.num_classes} classes",
            why="; ".join(problems),
            fix="check method, number of classes, img_size and backbone against the checkpoint",
            code="state_dict",
        )
    model.load_state_dict(model.from_official(state), strict=True)


def _shape_of(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
