"""Mask files: lossless, indexed, readable by other tools, refused where they are no masks."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.formats.conftest import Run
from wsss_rt.classes import voc_palette
from wsss_rt.errors import WsssError
from wsss_rt.formats.png import encode_mask, read_mask


def test_every_value_comes_back_and_shows_in_its_voc_colour(tmp_path: Path) -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    path = tmp_path / "m.png"
    path.write_bytes(encode_mask(mask))
    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), mask)
        shown = np.array(image.convert("RGB")).reshape(-1, 3)
    assert [tuple(color) for color in shown] == list(voc_palette())
    assert np.array_equal(read_mask(path), mask)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (37, 51)])
def test_odd_sizes_survive(tmp_path: Path, shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    path = tmp_path / "m.png"
    path.write_bytes(encode_mask(mask))
    assert np.array_equal(read_mask(path), mask)


def test_a_view_of_a_larger_array_is_encoded_as_it_looks(tmp_path: Path) -> None:
    whole = np.random.default_rng(2).integers(0, 9, (20, 30)).astype(np.uint8)
    turned = whole.T[::-1, ::2]
    path = tmp_path / "m.png"
    path.write_bytes(encode_mask(turned))
    assert np.array_equal(read_mask(path), turned)


def test_the_same_mask_gives_the_same_bytes() -> None:
    mask = np.random.default_rng(3).integers(0, 3, (50, 60)).astype(np.uint8)
    assert encode_mask(mask) == encode_mask(mask.copy())


@pytest.mark.parametrize(
    "mask", [np.zeros((3, 4)), np.zeros((3, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_what_is_no_mask_is_not_encoded(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_mask(mask)


def test_files_mirror_the_input_tree_whatever_the_names(run: Run) -> None:
    run.finish(["png"])
    found = {os.fsencode(path.relative_to(run.out)) for path in run.out.rglob("*.png")}
    assert found == {b"masks/a.png", b"masks/deep/b c.png", b"masks/deep/empty.png", b"masks/caf\xe9.png"}
    turned = run.results[1]
    assert turned.image.shape[:2] == (90, 120)
    assert read_mask(run.out / "masks/deep/b c.png").shape == (120, 90)


def test_masks_of_other_tools_are_read(tmp_path: Path) -> None:
    mask = np.array([[0, 1], [7, 255]], np.uint8)
    gray, wide, bits = tmp_path / "gray.png", tmp_path / "wide.png", tmp_path / "bits.png"
    cv2.imwrite(str(gray), mask)
    Image.fromarray(mask.astype(np.uint16)).save(wide)
    Image.fromarray(mask > 0).save(bits)
    assert np.array_equal(read_mask(gray), mask)
    assert np.array_equal(read_mask(wide), mask)
    assert np.array_equal(read_mask(bits), mask > 0)


def test_a_picture_in_colours_is_no_mask(tmp_path: Path) -> None:
    path = tmp_path / "colours.png"
    Image.new("RGB", (4, 3), (128, 0, 0)).save(path)
    with pytest.raises(WsssError, match="picture in colours") as caught:
        read_mask(path)
    assert caught.value.code == "mask_not_indexed"
    assert "class number per pixel" in str(caught.value)


def test_unreadable_masks_say_why(tmp_path: Path) -> None:
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("no picture")
    cut.write_bytes(encode_mask(np.random.default_rng(0).integers(0, 9, (64, 64)).astype(np.uint8))[:900])
    Image.fromarray(np.full((2, 2), 300, np.uint16)).save(tmp_path / "wide.png")
    for path, reason in [
        (text, "it is no PNG"),
        (cut, "cannot read"),
        (tmp_path / "none.png", "no such file"),
        (tmp_path / "wide.png", "up to 300"),
    ]:
        with pytest.raises(WsssError, match=reason):
            read_mask(path)
