"""What a comparison of maps with true boxes gave, and what it is as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from wsss_rt.errors import UsageError, nearest
from wsss_rt.io.names import printable
from wsss_rt.metrics.boxes import IOU_LIMITS, LocalizationAccuracy, MaxBoxAccV2
from wsss_rt.sweep import number


class Variant(StrEnum):
    """Other programs whose way of counting is available beside ours."""

    TOKEN_REFINEMENT = "token-refinement"


def parse_variant(name: str) -> Variant:
    """A variant by its name.

    Raises:
        UsageError: an unknown name, with the nearest one.
    """
    known = [entry.value for entry in Variant]
    if name not in known:
        raise UsageError(f"unknown variant {name!r}", fix=nearest(name, known))
    return Variant(name)


@dataclass(frozen=True)
class VariantResult:
    """What another program would have printed: shares of images, 0..1.

    Attributes:
        top: its classification and localization, at its one threshold.
        box_accuracies: per limit of ``IOU_LIMITS``, at the same threshold.
    """

    name: Variant
    top: LocalizationAccuracy
    box_accuracies: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        entries = [
            {"iou": limit, "accuracy": accuracy}
            for limit, accuracy in zip(IOU_LIMITS, self.box_accuracies, strict=True)
        ]
        value = float(np.mean(self.box_accuracies))
        return {"name": self.name.value} | _top(self.top) | {"box_acc": {"value": value, "per_iou": entries}}


@dataclass(frozen=True)
class BoxEvaluation:
    """What the comparison gave; shares of images, 0..1.

    Attributes:
        images: names of the images that count.
        top: classification, localization, GT-known.
        chosen_here: the threshold of ``top`` is the best on this truth, and was not given.
        boxes: MaxBoxAccV2.
        missing, extra: names without the other side.
        variant: where asked for.
        notes: what a reader of the numbers should know.
    """

    images: tuple[str, ...]
    top: LocalizationAccuracy
    chosen_here: bool
    boxes: MaxBoxAccV2
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    variant: VariantResult | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        rows = zip(IOU_LIMITS, self.boxes.accuracies(), self.boxes.best_thresholds(), strict=True)
        entries = [
            {"iou": limit, "accuracy": number(accuracy), "threshold": number(threshold)}
            for limit, accuracy, threshold in rows
        ]
        result: dict[str, Any] = {"task": "localization", "images": len(self.images)}
        result |= _top(self.top) | {"threshold_chosen_on_truth": self.chosen_here}
        result["max_box_acc_v2"] = {"value": number(self.boxes.value()), "per_iou": entries}
        if self.variant is not None:
            result["variant"] = self.variant.as_dict()
        result["missing"] = [printable(name) for name in self.missing]
        result["extra"] = [printable(name) for name in self.extra]
        return result | {"notes": list(self.notes)}


def _top(top: LocalizationAccuracy) -> dict[str, Any]:
    return {
        "top_1_classification": top.top_1_class,
        "top_5_classification": top.top_5_class,
        "top_1_localization": top.top_1,
        "top_5_localization": top.top_5,
        "gt_known": top.gt_known,
        "threshold": top.threshold,
    }
