"""The COCO file, read back with pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.formats.conftest import Run
from tests.samples import make_failure, make_result
from wsss_rt.classes import SCENE_CLASSES
from wsss_rt.errors import WsssError
from wsss_rt.formats.coco import regions
from wsss_rt.formats.png import read_mask


def load(path: Path) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_every_mask_comes_back_from_the_annotations(run: Run) -> None:
    (path,) = run.finish(["coco"])
    coco = load(path)
    assert [coco.cats[value]["name"] for value in sorted(coco.cats)] == list(SCENE_CLASSES)
    assert len(coco.imgs) == 4
    for image in coco.imgs.values():
        mask = read_mask(run.out / image["mask"])
        assert (image["height"], image["width"]) == mask.shape
        rebuilt = np.zeros_like(mask)
        for annotation in coco.imgToAnns[image["id"]]:
            region = coco.annToMask(annotation)
            assert annotation["area"] == region.sum()
            rows, columns = np.nonzero(region)
            assert annotation["bbox"] == [
                columns.min(),
                rows.min(),
                columns.max() - columns.min() + 1,
                rows.max() - rows.min() + 1,
            ]
            rebuilt[region == 1] = annotation["category_id"]
        assert np.array_equal(rebuilt, np.where(mask == 255, 0, mask))


def test_names_that_are_no_utf8_stay_exact(run: Run) -> None:
    (path,) = run.finish(["coco"])
    names = {os.fsencode(image["file_name"]) for image in json.loads(path.read_bytes())["images"]}
    assert names == {b"a.jpg", b"deep/b c.jpg", b"deep/empty.jpg", b"caf\xe9.jpg"}


def test_failed_images_have_no_entry(run: Run) -> None:
    run.results.append(make_failure("broken.jpg", "truncated", "cut"))
    (path,) = run.finish(["coco"])
    assert "broken.jpg" not in path.read_text()


def test_the_order_in_which_images_finished_leaves_no_trace(run: Run, tmp_path: Path) -> None:
    first = run.finish(["coco"])[0].read_bytes()
    again = Run(tmp_path / "again", run.classes, run.results[::-1])
    assert again.finish(["coco"])[0].read_bytes() == first


def test_holes_and_parts_are_kept() -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[5:30, 5:30] = 3
    mask[10:20, 10:20] = 0
    mask[35:38, 40:48] = 3
    (region,) = regions(mask)
    assert (region.value, region.area, region.box) == (3, 25 * 25 - 100 + 24, (5, 5, 43, 33))


def test_the_file_says_where_it_comes_from(run: Run) -> None:
    context = {"model": {"method": "mctformer-v2", "weights_sha256": "ab" * 32}, "config_hash": "c0ffee"}
    (path,) = run.finish(["coco"], context=context)
    info = json.loads(path.read_bytes())["info"]
    assert (info["method"], info["model_sha256"], info["config_hash"]) == (
        "mctformer-v2",
        "ab" * 32,
        "c0ffee",
    )


def test_no_image_at_all_is_still_a_valid_file(tmp_path: Path, run: Run) -> None:
    run.results = []
    (path,) = run.finish(["coco"])
    assert json.loads(path.read_bytes())["images"] == []
    assert load(path).imgs == {}


def test_a_mask_that_vanished_is_named_and_the_old_file_stays(run: Run) -> None:
    (path,) = run.finish(["coco"])
    before = path.read_bytes()
    (run.out / "masks/a.png").unlink()
    run.results = [make_result("z.jpg", 5)]
    with pytest.raises(WsssError, match=r"a\.png.*no such file"):
        run.finish(["coco"])
    assert path.read_bytes() == before
    assert not [name for name in os.listdir(run.out) if name.endswith(".tmp")]
