"""Tables of what was trained and how good it is."""

from __future__ import annotations

from typing import Any

from table_text import machine_line, markdown, percent, spread

PIPELINE_ROWS = (
    ("localizer", "localizer", "held-given", "held-predicted"),
    ("+ CRF", None, "held-crf", None),
    ("+ walk", None, "held-walk", None),
    ("+ walk, then CRF", None, "held-walk+crf", None),
    ("pseudo-labels", "pseudo", "held-labels", "held-pseudo"),
    ("segmenter `segvit`", None, None, "segvit"),
    ("segmenter `segvit` + CRF", None, None, "segvit-crf"),
    ("segmenter `segvit-shrunk`", None, None, "segvit-shrunk"),
    ("segmenter `conv-head`", None, None, "conv-head"),
)


def scenes(result: dict[str, Any]) -> str:
    """The ablation on scenes."""
    head = ["map", "background", "validation mIoU", "mIoU, tags given", "mIoU, tags predicted"]
    rows = []
    for row in result["rows"]:
        name = f"**{row['map']}**" if row["map"] == result["chosen_by_validation"] else row["map"]
        rows.append(
            [
                name,
                f"{row['background']:.2f}",
                percent(row["validation_miou"]),
                percent(row["given"]),
                percent(row["predicted"]),
            ]
        )
    model, data = result["model"], result["scenes"]
    note = (
        f"\n{data['count']} scenes of seed {data['seed']}, no CRF; {model['method']} on {model['backbone']}, "
        f"{model['images_seen']:,} training scenes, tag mAP {percent(result['tag_map'])}. "
        f"Bold: what validation chose; exported and labelled by `wsss-rt label` it reaches "
        f"{percent(result['exported']['given'])} and {percent(result['exported']['predicted'])}. "
        f"{machine_line(result)}"
    )
    return markdown(head, rows) + note


def voc_animals(result: dict[str, Any]) -> str:
    """IoU on photographs."""
    names = [entry["name"] for entry in result["eval"]["given"]["classes"]]
    head = ["tags", *names, "seconds to label"]
    rows = []
    for mode in ("given", "predicted"):
        found = {entry["name"]: entry for entry in result["eval"][mode]["classes"]}
        rows.append(
            [
                mode,
                *(percent(found[name]["iou"]) for name in names),
                f"{result['seconds'][f'label_{mode}']:.0f}",
            ]
        )
    model = result["model"]
    note = (
        f"\n{result['photographs']} photographs; {model['method']} on {model['backbone']} from random "
        f"weights, {model['images_seen']:,} images seen in {result['seconds']['train'] / 60:.0f} minutes. "
        f"{machine_line(result)}"
    )
    return markdown(head, rows) + note


def methods(result: dict[str, Any]) -> str:
    """Every method at equal budget."""
    head = [
        "method",
        "best map",
        "mIoU",
        "GT-known",
        "MaxBoxAccV2",
        "tag mAP",
        "training, CPU s",
        "ms an image",
    ]
    rows = []
    for row in result["rows"]:
        best = max(row["miou"], key=lambda kind: row["miou"][kind]["mean"])
        cells = [spread(row["miou"][best]), spread(row["gt_known"]), spread(row["max_box_acc_v2"])]
        times = [f"{row['cpu_seconds']:.0f}", f"{row['latency_ms']:.1f}"]
        seeds = "" if len(row["runs"]) == result["budget"]["seeds"] else f" ({len(row['runs'])} seed)"
        rows.append([row["name"] + seeds, best, *cells, spread(row["tag_map"]), *times])
    budget, data = result["budget"], result["scenes"]
    boxes = result["rows"][0]["runs"][0]["boxes"]["images"]
    views = f"{budget['images']:,} training views of scenes a run (a pair counts twice)"
    note = (
        f"\n{views}, {budget['seeds']} seeds, mean ± standard deviation; {data['count']} unseen scenes of "
        f"seed {data['seed']}, tags given, no CRF. The best map is the best on them; boxes are judged by the "
        f"map that validation chose, on the {boxes} scenes of one class. Time an image: PyTorch, one pass of "
        f"224 px, one thread. {machine_line(result, 'torch', 'timm')}"
    )
    return markdown(head, rows) + note


def methods_maps(result: dict[str, Any]) -> str:
    """The maps of every method, with and without refinement."""
    refinements = ("", "+affinity", "+similarity")
    head = ["method", "map", "as it is", "+ affinity", "+ similarity"]
    rows = []
    for row in result["rows"]:
        for name in dict.fromkeys(kind.partition("+")[0] for kind in row["miou"]):
            cells = [row["miou"].get(name + suffix) for suffix in refinements]
            rows.append([row["name"], name, *("–" if cell is None else spread(cell) for cell in cells)])
    return markdown(head, rows)


def pipeline_stages(result: dict[str, Any]) -> str:
    """mIoU after each stage of examples/pipeline.sh."""
    settings, miou = result["settings"], result["miou"]
    miou = {**miou, "held-labels": miou[f"held-{settings['LABELS']}"]}
    head = ["after", "training scenes, tags given", "held out, tags given", "held out, no tags"]
    rows = [
        [name, *("–" if key is None else percent(miou[key]) for key in keys)]
        for name, *keys in PIPELINE_ROWS
        if all(key is None or key in miou for key in keys)
    ]
    note = (
        f"\nmIoU, %. {settings['TRAIN_SCENES']} training scenes (the localizer's masks and the affinity net: "
        f"the first {settings['AFFINITY_SCENES']}), {settings['HELD_OUT']} held out; a localizer of "
        f"{int(settings['LOCALIZER_IMAGES']):,} images, pseudo-labels by {settings['LABELS']}, "
        f"segmenters of {int(settings['STUDENT_IMAGES']):,} images. All stages: "
        f"{result['total']['processor'] / 60:.1f} minutes of one processor, "
        f"{result['total']['wall'] / 60:.1f} on the clock. {result.get('note', '')} "
        f"{machine_line(result, 'torch', 'onnxruntime')}"
    )
    return markdown(head, rows) + note
