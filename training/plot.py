"""The curve of a run as a picture."""

from __future__ import annotations

import io
from pathlib import Path

from wsss_rt.io.atomic import write_atomic
from wsss_rt.training.journal import LOG, read_log


def plot_run(folder: Path) -> Path | None:
    """Draw ``log.jsonl`` of a run folder into ``curve.png``.

    Returns:
        The picture, or None where the log holds nothing to draw.
    """
    entries = read_log(folder / LOG)
    training = [entry for entry in entries if entry.get("kind") == "train"]
    checks = [entry for entry in entries if entry.get("kind") == "validation"]
    if not training and not checks:
        return None
    # the object interface needs no display and leaves the global state of pyplot alone
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(name for entry in training for name in entry["losses"]):
        points = [(e["images"], e["losses"][name]) for e in training if name in e["losses"]]
        left.plot(
            *zip(*points, strict=True), label=name, linewidth=1.2, marker="." if len(points) < 30 else None
        )
    left.set(xlabel="training images", ylabel="loss", title="training losses")
    measured = {
        f"mIoU {name}": [(e["images"], e["miou"][name]) for e in checks if name in e.get("miou", {})]
        for name in dict.fromkeys(name for entry in checks for name in entry.get("miou", {}))
    }
    curves = {
        "mAP of tags": [(e["images"], e["map"]) for e in checks if e.get("map") is not None],
        **measured,
    }
    for name, points in curves.items():
        if points:
            right.plot(*zip(*points, strict=True), label=name, linewidth=1.2, marker=".")
    right.set(xlabel="training images", ylabel="0..1", title="validation", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": "wsss-rt"})
    path = folder / "curve.png"
    write_atomic(path, buffer.getvalue())
    return path
