"""The report as a person gets it: parsed as HTML, with hostile names, after resumes, at any size."""

from __future__ import annotations

import base64
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from tests.samples import make_failure, make_result
from wsss_rt.classes import SCENE_CLASSES, ClassSet
from wsss_rt.formats.png import encode_mask
from wsss_rt.io.manifest import Manifest
from wsss_rt.report import ReportWriter
from wsss_rt.report.collect import FAILURES, GALLERY, SAMPLE, collect
from wsss_rt.report.html import EMBEDDED_SAMPLE, EMBEDDED_WORST

CONTEXT: dict[str, Any] = {
    "model": {
        "path": "/somewhere/scenes-v1.onnx",
        "method": "mctformer-v2",
        "weights_sha256": "ab12" * 16,
        # as `train` writes it for one's own images, where ``validation`` counts those held out
        "training": {"data": "scenes, seed 1", "images": {"listed": 9, "used": 7}, "validation": 2},
        "quality": {"validation": {"data": "scenes of seed 2", "map": 0.671234, "iou": [0.5]}},
    },
    "engine": {"backend": "onnxruntime", "device": "cpu", "precision": "float32"},
    "identity": {"scales": [1.0, 0.75], "flip": True, "refine": "none", "ignore_band": [0.3, 0.5]},
    "thresholds": {
        "background": {"value": 0.42, "from": "model card"},
        "tags": {"from": "model card"},
        "model_card_provenance": "best mIoU on 200 scenes of seed 2",
    },
    "config": {"tags": None, "formats": ["png", "coco", "report"]},
}
VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Text, images, links and cards of a page; refuses tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.cards: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.stack, f"never closed: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "img":
            self.images.append(values["src"] or "")
        if tag == "a":
            self.links.append(values["href"] or "")
        if tag == "figure":
            self.cards.append(values)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> does not fit"

    def handle_data(self, data: str) -> None:
        if not self.stack or self.stack[-1] not in ("script", "style"):
            self.text += data


def write(out: Path, results: list[Any], *, context: dict[str, Any] = CONTEXT) -> bytes:
    writer = ReportWriter(out, ClassSet(SCENE_CLASSES), context=context)
    with Manifest(out / "manifest.jsonl", sync_seconds=60) as manifest:
        for result in results:
            record = result.record()
            if result.error is None:
                path = out / "masks" / result.mask_name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_mask(result.mask))
                record |= {"mask": f"masks/{result.mask_name}"} | writer.add(result)
            manifest.append(record)
        (path,) = writer.finish(manifest.load())
    return path.read_bytes()


def test_it_tells_what_ran_what_came_out_and_what_failed(tmp_path: Path) -> None:
    results = [make_result(f"dir/{index}.jpg", index) for index in range(6)]
    results[3].flags = ("tag_without_evidence",)
    results.append(make_failure("dir/cut.jpg", "truncated", "dir/cut.jpg ends too early. Copy it again"))
    page = Page(write(tmp_path, results).decode())
    for text in (
        "mctformer-v2 · scenes-v1.onnx",
        "onnxruntime · cpu · float32",
        "ab12ab12ab12ab12",
        "scenes, seed 1",
        "scenes of seed 2; tag mAP 0.671",
        "0.42",
        "from the model card",
        "best mIoU on 200 scenes of seed 2",
        "predicted for 6 images",
        "0.3 to 0.5",
        "1.0, 0.75, each also mirrored",
        "tag without evidence",
        "1 image failed",
        "dir/cut.jpg ends too early. Copy it again",
        "All 6 images",
        *SCENE_CLASSES,
    ):
        assert text in page.text, text
    assert "/somewhere" not in page.text


def test_the_least_confident_come_first(tmp_path: Path) -> None:
    scores = [0.9, 0.1, 0.5, 0.3]
    results = [make_result(f"{index}.jpg", index, confidence=score) for index, score in enumerate(scores)]
    page = Page(write(tmp_path, results).decode())
    assert [card["data-name"] for card in page.cards] == ["1.jpg", "3.jpg", "2.jpg", "0.jpg"]
    assert [card["data-rank"] for card in page.cards] == ["0", "1", "2", "3"]


def test_cards_carry_what_the_filters_need(tmp_path: Path) -> None:
    results = [make_result("a.jpg", 1, flags=("all_background",))]
    (card,) = Page(write(tmp_path, results).decode()).cards
    mask = results[0].mask
    assert mask is not None and card["data-classes"] is not None
    assert {int(value) for value in card["data-classes"].split()} == set(np.unique(mask).tolist()) - {0}
    assert card["data-flags"] == "all_background"


def test_pictures_are_inside_and_show_image_beside_mask(tmp_path: Path) -> None:
    page = Page(write(tmp_path, [make_result("a.jpg", 1, orientation=6)]).decode())
    (source,) = page.images
    with Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))) as picture:
        # upright 120 x 90, twice, with a line between
        assert picture.size == (244, 90)


def test_nothing_is_loaded_from_a_network(tmp_path: Path) -> None:
    source = write(tmp_path, [make_result(f"{index}.jpg", index) for index in range(3)]).decode()
    assert not re.findall(r"https?://|//[a-z]+\.|@import|url\(", source)
    assert not Page(source).tags & {"link", "iframe", "object", "embed", "base"}
    assert "default-src 'none'" in source


@pytest.mark.parametrize(
    "name",
    [
        '"><script>alert(1)</script>.jpg',
        "a&amp;b <img src=x onerror=alert(1)>.jpg",
        "{{cards}}.jpg",
        "</script>' \" .jpg",
        os.fsdecode(b"caf\xe9\n.jpg"),
        "snow ☃ 100% #1?.jpg",
    ],
)
def test_hostile_names_are_text_and_their_links_work(tmp_path: Path, name: str) -> None:
    results = [make_result(name, 1, flags=("<b>",)), make_failure(name + "2", "<i>", name)]
    results[0].mask_name = name.replace("/", "_") + ".png"
    source = write(tmp_path, results)
    page = Page(source.decode("utf-8"))
    assert source.count(b"<script>") == 1
    assert len(page.cards) == 1 and len(page.images) == 1
    (mask,) = [link for link in page.links if link.startswith("masks/") and link != "masks/"]
    assert (tmp_path / os.fsdecode(unquote_to_bytes(mask))).is_file()


def test_the_same_run_gives_the_same_bytes_in_whatever_order_images_finish(tmp_path: Path) -> None:
    results = [make_result(f"{index}.jpg", index) for index in range(12)]
    results[4] = make_failure("4.jpg", "empty", "4.jpg is empty")
    first = write(tmp_path / "first", results)
    assert write(tmp_path / "second", results[::-1]) == first


def test_a_large_run_stays_small_and_says_what_it_shows(tmp_path: Path) -> None:
    count = GALLERY + SAMPLE + 400
    shared = make_result("x.jpg", 1)
    writer = ReportWriter(tmp_path, ClassSet(SCENE_CLASSES), context=CONTEXT)
    shared.mask_name = "x.png"
    files = writer.add(shared) | {"mask": "masks/x.png"}
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/x.png").write_bytes(encode_mask(np.ones((9, 9), np.uint8)))
    records = [
        shared.record() | files | {"path": f"{index:05d}.jpg", "confidence": index / count}
        for index in range(count)
    ]
    records += [make_failure(f"bad{index}.jpg", "corrupt", "no").record() for index in range(FAILURES + 30)]
    (path,) = writer.finish(records)
    page = Page(path.read_text())
    inside = [source for source in page.images if source.startswith("data:")]
    assert GALLERY <= len(page.cards) <= GALLERY + SAMPLE
    assert EMBEDDED_WORST <= len(inside) <= EMBEDDED_WORST + EMBEDDED_SAMPLE
    assert sum("data-sample" in card for card in page.cards) == SAMPLE
    assert f"of {count:,}: the {GALLERY:,} least confident and a random sample of {SAMPLE}" in page.text
    assert "and 30 more, see manifest.jsonl" in page.text
    assert f"{count:,}images labelled" in page.text
    assert page.cards[0]["data-name"] == "00000.jpg"


def test_a_run_in_which_everything_failed(tmp_path: Path) -> None:
    page = Page(write(tmp_path, [make_failure("a.jpg", "empty", "a.jpg is empty")]).decode())
    assert not page.cards and "No image was labelled." in page.text and "a.jpg is empty" in page.text


def test_it_is_written_even_where_the_context_is_empty(tmp_path: Path) -> None:
    page = Page(write(tmp_path, [make_result("a.jpg", 1)], context={}).decode())
    assert len(page.cards) == 1


def test_counts_are_those_of_the_masks(tmp_path: Path) -> None:
    results = [make_result(f"{index}.jpg", index, ignore_rows=10) for index in range(4)]
    write(tmp_path, results)
    found = collect(Manifest(tmp_path / "manifest.jsonl").load(), tmp_path)
    masks = np.stack([result.mask for result in results])
    assert np.array_equal(found.pixels, np.bincount(masks.ravel(), minlength=256))
    assert found.labelled == 4 and found.failed == 0
    for value in range(1, len(SCENE_CLASSES) + 1):
        assert found.drawn[value] == sum((mask == value).any() for mask in masks)
    assert found.confidence_sum == pytest.approx(sum(result.confidence or 0 for result in results))
