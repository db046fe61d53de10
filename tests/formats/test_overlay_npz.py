"""Overlays a person can look at, and maps a script can load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.formats.conftest import Run
from tests.samples import make_result
from wsss_rt.classes import SCENE_CLASSES, VOC_CLASSES, ClassSet
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.formats import DEFAULT_FORMATS, Format, needs, open_writers, parse_formats
from wsss_rt.formats.npz import read_maps
from wsss_rt.io.decode import to_upright
from wsss_rt.report.draw import blend, display_color, overlay, thumbnail


class TestNames:
    def test_png_is_always_there_and_first(self) -> None:
        assert parse_formats(["coco,report", "coco"]) == (Format.PNG, Format.COCO, Format.REPORT)
        assert parse_formats([]) == (Format.PNG,)
        assert parse_formats(DEFAULT_FORMATS) == DEFAULT_FORMATS

    def test_a_misspelt_format_offers_the_nearest(self) -> None:
        with pytest.raises(UsageError, match="did you mean 'overlay'"):
            parse_formats(["overlays"])

    def test_writers_say_what_they_need_and_give(self, tmp_path: Path) -> None:
        every = [entry.value for entry in Format]
        writers = open_writers(every, tmp_path, ClassSet(SCENE_CLASSES), context={})
        assert [writer.name for writer in writers] == every
        for writer in writers:
            result = make_result("x/y.jpg", 3)
            given = writer.add(result)
            assert tuple(given) == writer.keys
            assert all((tmp_path / relative).is_file() for relative in given.values())
            assert writer.needs <= needs([writer.name])
        assert needs(every) == {"image", "maps"}
        assert needs(["coco"]) == set()


class TestOverlay:
    def test_it_is_upright_with_the_legend_below(self, run: Run) -> None:
        run.finish(["overlay"])
        with Image.open(run.out / "overlays/deep/b c.jpg") as picture:
            assert picture.width == 120 and picture.height > 90

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_mask_lies_over_its_object_in_every_orientation(self, orientation: int) -> None:
        result = make_result("a.jpg", 4, orientation=orientation)
        expected = make_result("a.jpg", 4).mask
        assert result.mask is not None and result.image is not None
        upright = to_upright(result.mask, orientation)
        assert np.array_equal(upright, expected)
        picture = blend(result.image, upright)
        assert picture.shape == result.image.shape

    def test_classes_and_background_can_be_told_apart(self) -> None:
        image = np.full((60, 60, 3), 128, np.uint8)
        mask = np.zeros((60, 60), np.uint8)
        mask[10:50, 5:28], mask[10:50, 32:55] = 1, 2
        picture = blend(image, mask).astype(int)
        colors = [picture[30, 16], picture[30, 43], picture[2, 2]]
        for first, second in [(0, 1), (0, 2), (1, 2)]:
            assert np.abs(colors[first] - colors[second]).sum() > 60
        assert np.array_equal(picture[2, 2], [128, 128, 128])

    def test_twenty_classes_have_distinct_colours(self) -> None:
        colors = np.array([display_color(value) for value in range(1, len(VOC_CLASSES) + 1)], int)
        distances = np.abs(colors[:, None] - colors[None]).sum(-1) + 1000 * np.eye(len(colors), dtype=int)
        assert distances.min() >= 40

    def test_extreme_sizes_are_drawn(self) -> None:
        for height, width in [(1, 1), (1, 3000), (3000, 1), (2200, 30)]:
            image, mask = np.zeros((height, width, 3), np.uint8), np.ones((height, width), np.uint8)
            picture = overlay(image, mask, ClassSet(SCENE_CLASSES))
            assert picture.shape[1] == max(1, min(width, round(width * 1600 / max(height, width))))
            small = thumbnail(image, mask)
            assert small.shape[0] <= 224 and small.shape[1] <= 2 * 448 + 4

    def test_a_mask_of_another_size_is_refused(self) -> None:
        with pytest.raises(ValueError, match="does not fit"):
            blend(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8))

    def test_unknown_values_and_names_beyond_ascii_are_drawn(self) -> None:
        image, mask = np.zeros((50, 80, 3), np.uint8), np.full((50, 80), 9, np.uint8)
        assert overlay(image, mask, ClassSet(("Straße", "猫"))).shape[0] > 50


class TestMaps:
    def test_they_come_back_with_their_classes(self, run: Run) -> None:
        run.finish(["npz"])
        stored = read_maps(run.out / "maps/deep/b c.npz")
        result = run.results[1]
        assert result.maps is not None and result.mask is not None
        assert [SCENE_CLASSES[index] for index in stored.classes] == list(result.tags)
        assert stored.size == result.mask.shape == (120, 90)
        assert np.abs(stored.at_size(120, 90) - result.maps).max() < 1e-3
        assert stored.scores.shape == (len(SCENE_CLASSES),)

    def test_an_image_without_classes_has_empty_maps(self, run: Run) -> None:
        run.finish(["npz"])
        stored = read_maps(run.out / "maps/deep/empty.npz")
        assert stored.classes == () and stored.at_size(90, 120).shape == (0, 90, 120)

    def test_large_images_are_stored_small_and_grow_back(self, tmp_path: Path) -> None:
        result = make_result("big.jpg", 2, size=(700, 1100))
        (_, writer) = open_writers(["npz"], tmp_path, result.classes, context={})
        writer.add(result)
        stored = read_maps(tmp_path / "maps/big.npz")
        assert max(stored.maps.shape[1:]) == 512
        assert result.maps is not None
        assert np.abs(stored.at_size(700, 1100) - result.maps).mean() < 0.02

    def test_the_same_maps_give_the_same_bytes(self, run: Run, tmp_path: Path) -> None:
        run.finish(["npz"])
        first = (run.out / "maps/a.npz").read_bytes()
        Run(tmp_path / "again", run.classes, run.results).finish(["npz"])
        assert (tmp_path / "again/maps/a.npz").read_bytes() == first

    def test_a_pickle_is_never_opened(self, tmp_path: Path) -> None:
        path = tmp_path / "evil.npz"
        np.savez(path, maps=np.array([{"a": 1}], dtype=object), classes=[0], size=[1, 1], scores=[0.0])
        with pytest.raises(WsssError, match="cannot read the maps"):
            read_maps(path)

    def test_a_cut_file_says_what_to_do(self, run: Run) -> None:
        run.finish(["npz"])
        path = run.out / "maps/a.npz"
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(WsssError, match="--format npz"):
            read_maps(path)
