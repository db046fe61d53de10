"""Pictures of masks, and the report that shows them."""

from __future__ import annotations

from wsss_rt.report.html import ReportWriter, render

__all__ = ["ReportWriter", "render"]
