"""Metrics of segmentation, classification and localization, in numpy alone.

The box metrics of the token-refinement repository differ from these and have a module of their own,
:mod:`wsss_rt.metrics.token_refinement`.
"""

from __future__ import annotations

from wsss_rt.metrics.boxes import (
    BOX_THRESHOLDS,
    IOU_LIMITS,
    LocalizationAccuracy,
    MaxBoxAccV2,
    Overlaps,
    TopLocalization,
    box_iou,
    box_overlaps,
    class_rank,
)
from wsss_rt.metrics.confusion import Absent, ConfusionMatrix, Joint, joint_histogram, nanmean
from wsss_rt.metrics.pixels import normalised_map, resize_bilinear, stretch
from wsss_rt.metrics.ranking import average_precision, mean_average_precision
from wsss_rt.metrics.regions import Regions, find_regions
from wsss_rt.metrics.sweep import OFFICIAL_THRESHOLDS, Sweep, ThresholdSweep, threshold_sweep

__all__ = [
    "BOX_THRESHOLDS",
    "IOU_LIMITS",
    "OFFICIAL_THRESHOLDS",
    "Absent",
    "ConfusionMatrix",
    "Joint",
    "LocalizationAccuracy",
    "MaxBoxAccV2",
    "Overlaps",
    "Regions",
    "Sweep",
    "ThresholdSweep",
    "TopLocalization",
    "average_precision",
    "box_iou",
    "box_overlaps",
    "class_rank",
    "find_regions",
    "joint_histogram",
    "mean_average_precision",
    "nanmean",
    "normalised_map",
    "resize_bilinear",
    "stretch",
    "threshold_sweep",
]
