"""Metrics of segmentation, classification and localization, in numpy alone."""

from __future__ import annotations

from wsss_rt.metrics.confusion import Absent, ConfusionMatrix, joint_histogram, nanmean
from wsss_rt.metrics.ranking import average_precision, mean_average_precision
from wsss_rt.metrics.sweep import OFFICIAL_THRESHOLDS, Sweep, ThresholdSweep, threshold_sweep

__all__ = [
    "OFFICIAL_THRESHOLDS",
    "Absent",
    "ConfusionMatrix",
    "Sweep",
    "ThresholdSweep",
    "average_precision",
    "joint_histogram",
    "mean_average_precision",
    "nanmean",
    "threshold_sweep",
]
