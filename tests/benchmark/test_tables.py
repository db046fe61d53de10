"""The README's tables of speed: what is shown, and that nothing is rounded in our favour."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def side(rate: float, ratio: float, **pixels: float) -> dict[str, Any]:
    stages = {"infer": 300.4, "refine": 60.0}
    rates = {"images_per_second": rate, "ratio_median": ratio, "processor_ms": 600.2}
    return {**rates, "stages_ms": stages, **pixels}


def test_a_comparison_shows_every_side_and_what_its_masks_lose(tables: ModuleType) -> None:
    worst = {"pixels_equal_mean": 0.99996, "pixels_equal_least": 0.8626}
    text = tables.pipeline(
        {
            "photographs": 20,
            "sides": {"float32": side(3.0, 3.55, **worst), "peer": side(0.84, 1.0)},
            "model_stage": {"float32": {"ms_of_a_pair": 250.2, "share_of_products": 0.81}},
            "environment": {"cpu": "Probe", "cores": 2, "versions": {"python": "3.12.0", "torch": "2.14"}},
        }
    )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| `wsss-rt label`, float32 | 3.00 | 3.5 | 600 | 99.99 | 86.26 | 300 | 60 |" in rows
    assert "| peer, float32 | 0.84 | 1.0 | 600 | – | – | 300 | 60 |" in rows and len(rows) == 3
    assert "float32 250 ms a pair, 81 % of what plain matrix products reach" in text
    assert "20 photographs" in text and "torch 2.14" in text


def test_a_bench_without_agreement_shows_no_speed_up(tables: ModuleType) -> None:
    def engine(name: str, differing: float) -> dict[str, Any]:
        seconds = {"read": 0.1, "import": 0.4, "build": 1.0}
        return {"name": name, "seconds": seconds, "agreement": {"masks": {"mean": differing}}}

    def rows(name: str, speed_up: float | None) -> list[dict[str, Any]]:
        model = {"milliseconds": {"p50": 11.26}, "share_of_products": 0.444}
        labeller = {"images_per_second": 40.0, "speed_up": speed_up, "memory_bytes": None}
        return [
            {"key": f"model, {name}, batch 1, 160x160 px", **model},
            {"key": f"pipeline, {name}, batch 1", **labeller},
        ]

    text = tables.bench(
        {
            "engines": [engine("onnxruntime float32", 0.0), engine("openvino bfloat16", 0.0312)],
            "rows": [*rows("onnxruntime float32", 1.0), *rows("openvino bfloat16", None)],
            "model": {"name": "probe"},
            "images": {"count": 8, "source": "8 generated scenes"},
            "settings": {"threads": 2},
            "machine": {"processor": "Probe"},
            "versions": {"openvino": "2026.4"},
            "elapsed_seconds": 58.4,
        }
    )
    assert "| onnxruntime float32 | 1.5 | – | 11.3 | 44 | 40.0 | 1.00 | 100.00 |" in text
    assert "| openvino bfloat16 | 1.5 | – | 11.3 | 44 | 40.0 | – | 96.88 |" in text
    assert "It took 58 seconds" in text
