"""Which layers of a model may run in int8: measured one by one, then as many as the budget allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsss_rt.engines.onnxruntime import OnnxRuntimeEngine
from wsss_rt.parity import LIMITS, Infer, compare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.export.quantized_graph import Layer, QuantizableGraph
    from wsss_rt.model_card import ModelCard

# of what the gate allows, on the images that were searched with: others will be a little worse
SHARE_OF_LIMIT = 0.5


@dataclass(frozen=True)
class LayerError:
    """What one layer in int8 does to a model that is otherwise float32.

    Attributes:
        layer: the layer.
        masks: fraction of the pixels whose class changes.
        maps: mean error of the maps over their largest value.
    """

    layer: Layer
    masks: float
    maps: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON; errors to three digits."""
        return {
            "layer": str(self.layer),
            "masks": float(f"{self.masks:.3g}"),
            "maps": float(f"{self.maps:.3g}"),
        }


class LayerSearch:
    """Measures sets of layers against the float32 model, in ONNX Runtime.

    Args:
        graph: calibrated.
        card: of the float32 model.
        reference: the float32 model.
        images: (H, W, 3) uint8 RGB to measure on.
    """

    def __init__(
        self,
        graph: QuantizableGraph,
        card: ModelCard,
        reference: Infer,
        images: Sequence[NDArray[np.uint8]],
    ) -> None:
        self._graph, self._card, self._reference, self._images = graph, card, reference, images

    def error(self, layers: Sequence[Layer]) -> tuple[float, float]:
        """Fraction of pixels that change, and mean error of the maps, with these layers in int8."""
        engine = OnnxRuntimeEngine(self._card, self._graph.quantized(layers))
        found = compare(
            self._reference,
            {"int8": engine},
            self._images,
            card=self._card,
            limits=LIMITS["int8"],
            source="calibration",
        )
        engine.close()
        means = {row.output: row.mean for row in found.rows}
        return means["masks"], means["maps"]

    def each(self, tell: Callable[[str], None]) -> list[LayerError]:
        """Every layer alone, the least harmful first."""
        errors = []
        for index, layer in enumerate(self._graph.layers):
            tell(f"layer {index + 1} of {len(self._graph.layers)}: {layer}")
            errors.append(LayerError(layer, *self.error([layer])))
        return sorted(errors, key=lambda found: (found.masks, found.maps))

    def choose(self, errors: Sequence[LayerError], tell: Callable[[str], None]) -> list[Layer]:
        """The least harmful layers, as many as keep masks within the budget together.

        Errors of layers add up, nearly: with one more layer masks get no better, so that the number is found
        by halving.
        """
        budget = SHARE_OF_LIMIT * LIMITS["int8"].masks
        order = [found.layer for found in errors]
        fits, too_many = 0, len(order) + 1
        while too_many - fits > 1:
            count = (fits + too_many) // 2
            masks, _ = self.error(order[:count])
            tell(f"{count} layers in int8 change {100 * masks:.2f} % of the pixels")
            if masks <= budget:
                fits = count
            else:
                too_many = count
        return order[:fits]
