"""Labelling with maps that stay on the engine's device, beside labelling in numpy: the same folder twice.

Both compute in float32, and neither in the other's order: OpenCV sums a resized value in vector registers,
the device tap by tap, which differs by some units in the last place. A pixel can only change where two scores
are that close, so all but one in ten thousand must be equal; nothing else may differ but the last digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from tests.affinity_model import write_affinity_model  # noqa: E402
from tests.label_models import COLORS, blocks, color_card, write_color_model  # noqa: E402
from tests.nasty import jpeg, stored_turned  # noqa: E402
from tests.tensor_engine import TensorColorEngine  # noqa: E402
from wsss_rt.classes import ClassSet  # noqa: E402
from wsss_rt.errors import UsageError  # noqa: E402
from wsss_rt.formats.npz import read_maps  # noqa: E402
from wsss_rt.kernels import last_path, use_kernels  # noqa: E402
from wsss_rt.label_plan import Job  # noqa: E402
from wsss_rt.label_run import label_folder  # noqa: E402
from wsss_rt.labeler import Labeler  # noqa: E402
from wsss_rt.model_card import InputSpec, MapRule, ModelCard, Recommended  # noqa: E402
from wsss_rt.options import LabelOptions  # noqa: E402
from wsss_rt.results import Result  # noqa: E402
from wsss_rt.stages import ImageStages, Work  # noqa: E402

# see above
EQUAL_PIXELS = 0.9999
SPEC = color_card().input


def write_images(folder: Path) -> None:
    """Several sizes and a turned one, of 41 to 150 px, and one that is no image."""
    folder.mkdir(parents=True)
    for index, (height, width) in enumerate(((64, 96), (64, 96), (80, 57), (41, 150), (64, 96))):
        Image.fromarray(blocks(index, height=height, width=width)).save(folder / f"{index}.png")
    turned = stored_turned(blocks(7, height=72, width=90), 6)
    (folder / "turned.jpg").write_bytes(jpeg(turned, orientation=6))
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:150])


def label_twice(work: Path, card: ModelCard, tags: Path | None = None, **options: Any) -> tuple[Path, Path]:
    """Output folders of the two localizations, with the same engine and options."""
    model = write_color_model(work / "model.onnx", **_fields(card))
    if not (work / "images").exists():
        write_images(work / "images")
    outs = work / "numpy", work / "torch"
    for out in outs:
        job = Job(
            inputs=[str(work / "images")],
            out=out,
            model=model,
            tags=tags,
            formats=("png", "npz") if options.get("keep_maps") else ("png",),
            options=LabelOptions(localization=out.name, batch=3, **options),
        )
        summary = label_folder(job, engine=TensorColorEngine(card=card))
        assert (summary.labelled, summary.failed) == (6, 1)
    return outs


def _fields(card: ModelCard) -> dict[str, Any]:
    return {} if card.kind == "segmenter" else {"classes": card.classes, "maps": card.maps}


def records(out: Path) -> dict[str, Mapping[str, Any]]:
    lines = (out / "manifest.jsonl").read_text().splitlines()
    return {record["path"]: record for record in map(json.loads, lines)}


def assert_same(host: Path, device: Path) -> None:
    names = sorted(path.name for path in (host / "masks").iterdir())
    assert names == sorted(path.name for path in (device / "masks").iterdir()) and len(names) == 6
    equal = pixels = 0
    for name in names:
        wanted, found = (np.asarray(Image.open(out / "masks" / name)) for out in (host, device))
        assert wanted.shape == found.shape and wanted.dtype == found.dtype
        equal, pixels = equal + int((wanted == found).sum()), pixels + wanted.size
    assert equal >= EQUAL_PIXELS * pixels
    expected, got = records(host), records(device)
    assert list(expected) == list(got)
    for path, record in expected.items():
        other = got[path]
        for key in (
            "status",
            "error",
            "tags",
            "tag_source",
            "scores",
            "flags",
            "notes",
            "size",
            "orientation",
        ):
            assert other[key] == record[key], (path, key)
        assert list(other["class_scores"]) == list(record["class_scores"])
        if record["status"] == "ok":
            assert other["confidence"] == pytest.approx(record["confidence"], abs=1e-4)
            assert list(other["class_scores"].values()) == pytest.approx(
                list(record["class_scores"].values()), abs=1e-3
            )
    assert json.loads((device / "run.json").read_text())["engine"]["localization"] == "torch"
    assert json.loads((host / "run.json").read_text())["engine"]["localization"] == "numpy"


WIDE = (*COLORS, *(f"thing {index}" for index in range(300)))


@pytest.mark.parametrize(
    ("card", "options"),
    [
        (color_card(), {}),
        (color_card(), {"flip": False, "scales": (1.0, 0.75, 1.3), "ignore_band": (0.3, 0.55)}),
        (color_card(maps=MapRule("aligned", "peak")), {"scales": (1.0, 0.5), "background": 0.6}),
        (color_card(maps=MapRule("bicubic", "minmax")), {"keep_maps": True}),
        (color_card(classes=WIDE, colors=(), recommended=Recommended()), {"ignore_band": (0.2, 0.4)}),
        (color_card(input=InputSpec(SPEC.mean, SPEC.std, 8, "short_side", 48)), {}),
        (color_card(kind="segmenter"), {}),
        (
            color_card(kind="segmenter", has_background=True),
            {"scales": (1.0, 1.5), "ignore_band": (0.3, 0.5)},
        ),
    ],
    ids=["plain", "scales", "aligned", "bicubic-maps", "wide", "resized", "segmenter", "segmenter-passes"],
)
def test_both_paths_write_the_same_folder(card: ModelCard, options: dict[str, Any], tmp_path: Path) -> None:
    host, device = label_twice(tmp_path, card, **options)
    assert_same(host, device)
    if options.get("keep_maps"):
        for name in ("0", "turned"):
            wanted, found = (read_maps(out / "maps" / f"{name}.npz") for out in (host, device))
            np.testing.assert_allclose(found.maps, wanted.maps, atol=2e-3)


def test_given_tags_choose_the_classes(tmp_path: Path) -> None:
    table = tmp_path / "tags.csv"
    rows = ["0.png,red;blue", "1.png,green", "2.png,", "3.png,blue", "4.png,red;green;blue", "turned.jpg,red"]
    table.write_text("\n".join(["image,tags", *rows, "broken.png,red"]))
    host, device = label_twice(tmp_path, color_card(), table)
    assert_same(host, device)
    assert records(device)["2.png"]["flags"] == ["no_tags_given"]


@pytest.mark.parametrize("refine", ["crf", "walk", "crf+walk"])
def test_refiners_give_the_same_on_the_device(refine: str, tmp_path: Path) -> None:
    for name in ("dense_crf", "random_walk"):
        pytest.importorskip(f"wsss_rt.kernels.{name}")
    affinity = str(write_affinity_model(tmp_path / "affinity.onnx"))
    host, device = label_twice(
        tmp_path, color_card(), refine=refine, affinity=affinity, backend="onnxruntime"
    )
    assert_same(host, device)


def test_a_crf_beyond_the_memory_that_was_allowed_costs_one_record() -> None:
    images = [blocks(3), blocks(3)[:16, :16]]

    def codes(**options: Any) -> list[str]:
        labeler = Labeler(engine=TensorColorEngine(), localization="torch", refine="crf", **options)
        found = [labeler.label(image, tags=["red"]).error for image in images]
        assert all(error is None or "--crf-memory" in error.message for error in found)
        return [error.code if error is not None else "" for error in found]

    # 64x96 px need three megabytes, 16x16 px a hundredth of that
    assert codes(crf_memory=1e-3) == ["out_of_memory", ""]
    assert codes(crf_memory=1.0) == codes() == ["", ""]


def test_kernels_do_it_when_they_are_asked_for() -> None:
    """Forced, and so interpreted where there is no GPU: one small image."""
    image = blocks(3, height=24, width=33)
    expected = Labeler(engine=TensorColorEngine(), localization="numpy").label(image)
    with use_kernels("triton"):
        found = Labeler(engine=TensorColorEngine(), localization="torch").label(image)
    assert last_path("map_to_mask") == "triton[range,decide]"
    assert found.error is None and found.mask is not None and expected.mask is not None
    assert found.tags == expected.tags and found.tags
    assert (found.mask == expected.mask).mean() >= EQUAL_PIXELS
    assert found.confidence == pytest.approx(expected.confidence, abs=1e-5)


def test_images_of_one_shape_share_a_call_and_a_full_device_halves_it() -> None:
    images = [blocks(index) for index in range(5)]

    def masks(engine: TensorColorEngine) -> list[bytes | None]:
        options = LabelOptions(localization="torch").resolved(engine.card)
        stages, classes = ImageStages(engine, options, None), ClassSet(engine.card.classes)
        works = [stages.admit_pixels(Work(Result("image", classes)), image) for image in images]
        stages.infer(works)
        return [stages.finish(work).png for work in works]

    roomy, narrow = TensorColorEngine(), TensorColorEngine(max_batch=4)
    assert masks(roomy) == masks(narrow) and None not in masks(roomy)
    assert roomy.batches[0] == 10 and narrow.batches == [10, 4, 6, 2, 4]


def test_memory_that_does_not_suffice_for_one_image_costs_one_record() -> None:
    result = Labeler(engine=TensorColorEngine(max_batch=1), localization="torch", flip=True).label(blocks(0))
    assert result.error is not None and result.error.code == "out_of_memory"


@pytest.mark.parametrize("where", ["scores", "maps"])
def test_nan_is_an_error_of_that_image(where: str, tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(blocks(index)).save(tmp_path / f"{index}.png")
    engine = TensorColorEngine()
    first = blocks(1)[0, 0].astype(np.float32) / 255
    engine.poison = where, (first - np.float32(0.5)) / np.float32(0.25)
    found = list(Labeler(engine=engine, localization="torch", batch=3).stream(tmp_path))
    assert [result.error.code if result.error else "" for result in found] == ["", "nonfinite_output", ""]
    assert found[1].error is not None and f"the model's {where} hold NaN" in found[1].error.message


def test_the_device_is_only_taken_where_it_can_be() -> None:
    from tests.label_models import ColorEngine

    assert Labeler(engine=TensorColorEngine()).localization == "numpy"
    engine = TensorColorEngine()
    engine.device = "cuda:0"
    assert Labeler(engine=engine, localization="numpy").localization == "numpy"
    with pytest.raises(UsageError, match="cannot stay"):
        Labeler(engine=ColorEngine(), localization="torch")
    with pytest.raises(UsageError, match="torch"):
        LabelOptions(localization="pytorch")
