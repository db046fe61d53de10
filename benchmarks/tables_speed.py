"""Tables of engines, the labeller, and what models cost."""

from __future__ import annotations

from typing import Any

from table_text import machine_line, markdown, percent, percent_exact


def pipeline(result: dict[str, Any]) -> str:
    """The whole labeller beside the peer, and the model alone beside plain products."""
    head = [
        "",
        "images/s",
        "times the peer",
        "processor, ms an image",
        "pixels equal, %",
        "worst image, %",
        "model, ms",
        "CRF, ms",
    ]
    names = {
        "float32": "`wsss-rt label`, float32",
        "bfloat16": "`wsss-rt label`, bfloat16",
        "mixed": "`wsss-rt label`, mixed",
        "peer": "peer, float32",
        "peer_bfloat16": "peer, bfloat16 by autocast",
    }
    rows = []
    for side, text in names.items():
        if side not in result["sides"]:
            continue
        found = result["sides"][side]
        equal = (found.get("pixels_equal_mean"), found.get("pixels_equal_least"))
        rows.append(
            [
                text,
                f"{found['images_per_second']:.2f}",
                f"{found['ratio_median']:.1f}",
                f"{found['processor_ms']:.0f}",
                *("–" if value is None else percent_exact(value) for value in equal),
                *(f"{found['stages_ms'][stage]:.0f}" for stage in ("infer", "refine")),
            ]
        )
    alone = "; ".join(
        f"{name} {entry['ms_of_a_pair']:.0f} ms a pair, {100 * entry['share_of_products']:.0f} % of what "
        "plain matrix products reach"
        for name, entry in result["model_stage"].items()
    )
    again = result["sides"].get("mixed", {}).get("second_looks")
    looks = f" Mixed ran {again} of the photographs again in float32." if again is not None else ""
    note = (
        f"\n{result['photographs']} photographs of VOC's size, MCTformer-V2 on DeiT-S with seeded weights, "
        "scale 1 and mirror image, tags given, CRF; in turns of a few photographs, the median of the turns' "
        "ratios. Pixels: against the peer in float32. Stages: median of a photograph; those of "
        f"`wsss-rt label` overlap.{looks} The model alone, in OpenVINO: {alone}. "
        f"{machine_line(result, 'openvino', 'torch', 'pydensecrf2')}"
    )
    return markdown(head, rows) + note


def bench(result: dict[str, Any]) -> str:
    """What `wsss-rt bench` found."""
    head = [
        "engine",
        "start, s",
        "memory, MB",
        "model, ms",
        "% of products",
        "images/s",
        "speed-up",
        "equal, %",
    ]
    rows = []
    for engine in result["engines"]:
        # mixed has none of the model alone
        model, labeller = (
            next(
                (row for row in result["rows"] if row["key"].startswith(f"{scope}, {engine['name']},")), None
            )
            for scope in ("model", "pipeline")
        )
        share = None if model is None else model["share_of_products"]
        speed_up = labeller["speed_up"]
        rows.append(
            [
                engine["name"],
                f"{sum(engine['seconds'].values()):.1f}",
                "–" if labeller["memory_bytes"] is None else f"{labeller['memory_bytes'] / 1e6:.0f}",
                "–" if model is None else f"{model['milliseconds']['p50']:.1f}",
                "–" if share is None else f"{100 * share:.0f}",
                f"{labeller['images_per_second']:.1f}",
                "–" if speed_up is None else f"{speed_up:.2f}",
                percent_exact(1 - engine["agreement"]["masks"]["mean"]),
            ]
        )
    machine, versions = result["machine"], result["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("onnxruntime", "openvino") if name in versions)
    note = (
        f"\n`wsss-rt bench`, {result['model']['name']}, {result['images']['source']}: the model alone on one "
        "image, p50; images/s and speed-up of the "
        "whole labeller; masks against float32 ONNX Runtime. It took "
        f"{result['elapsed_seconds']:.0f} seconds. {machine['processor']}, {result['settings']['threads']} "
        f"threads; {named}.\n"
    )
    return markdown(head, rows) + note


def quantize(result: dict[str, Any]) -> str:
    """int8 beside float32 and bfloat16."""
    head = ["model, engine", "mIoU", "masks equal, %", "ms a pair", "times bfloat16's speed"]
    rows, sizes = [], []
    miou = result["quality"]["miou"]
    for name in ("scenes-v2", "deit-s"):
        found = result[f"speed-{name}"]
        sizes.append(f"{name} at {'x'.join(map(str, found['size']))} px")
        # seeded weights' masks mean nothing
        judged = name == "scenes-v2"
        ms = {row["engine"]: row["ms"]["p50"] for row in found["rows"]}
        for row in sorted(found["rows"], key=lambda row: -row["ms"]["p50"]):
            engine = row["engine"]
            rows.append(
                [
                    f"{name}, {engine}",
                    percent(miou.get(engine)) if judged else "–",
                    percent_exact(row["masks_equal"]) if judged else "–",
                    f"{ms[engine]:.1f}",
                    f"{ms['openvino bfloat16'] / ms[engine]:.2f}",
                ]
            )
    made = result["export"]["scenes-v2"]
    note = (
        f"\nmIoU: {result['quality']['count']} scenes of seed {result['quality']['seed']}, tags given, "
        f"no CRF. ms: median of two images, all engines in turns; {' and '.join(sizes)}. Of scenes-v2 "
        f"{made['layers']} layers run in int8, {len(made['in_float'])} with weights stay in float; "
        f"{made['bytes'] / 1e6:.1f} MB in place of {made['bytes_float32'] / 1e6:.1f}. {machine_line(result)}"
    )
    return markdown(head, rows) + note


def cost(result: dict[str, Any]) -> str:
    """Multiply-accumulates beside published ones."""
    head = ["model", "backbone", "px", "classes", "GMAC", "published", "seconds a pass"]
    rows = [
        [
            row["model"],
            row["backbone"].removesuffix("_patch16_224"),
            f"{row['size'][0]}",
            f"{row['classes']}",
            f"{row['macs'] / 1e9:.1f}",
            f"{row['published_gmac']:.1f}",
            "–" if row["seconds"] is None else f"{row['seconds']:.2f}",
        ]
        for row in result["rows"]
    ]
    full, shrunk = result["rows"][:2]
    note = (
        f"\nShrunk over SegViT, {full['size'][0]} px: {shrunk['macs'] / full['macs']:.3f} of the operations, "
        f"{shrunk['seconds'] / full['seconds']:.3f} of the time: medians of {result['runs']} passes in turn, "
        f"float32 PyTorch, {result['threads']} threads. {machine_line(result, 'torch', 'timm')}"
    )
    return markdown(head, rows) + note
