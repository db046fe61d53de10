"""Trained models to compiled artifacts, each proven equal to its PyTorch model before it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss_rt.export.onnx import ExportReport, export_onnx

__all__ = ["ExportReport", "export_onnx"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from wsss_rt.export import onnx

        return getattr(onnx, name)
    raise AttributeError(f"module 'wsss_rt.export' has no attribute {name!r}")
