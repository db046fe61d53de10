"""Validation against models whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsss_rt.model_card import InputSpec
from wsss_rt.training.data.sources import Cached, SceneSource
from wsss_rt.training.models import create_model
from wsss_rt.training.models.base import Localization, Localizer
from wsss_rt.training.validation import (
    MapKind,
    best_f1_threshold,
    current_kinds,
    evaluate_localization,
    map_kinds,
    recommend,
)


class Oracle(nn.Module):
    """Knows the truth of scenes by their pixels; ``blur`` is its quality switch."""

    def __init__(self, source: SceneSource, *, height: float) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.height, self.inverted = height, False
        self._truth: dict[bytes, tuple[np.ndarray[Any, Any], tuple[int, ...]]] = {}
        for index in range(source.count or 0):
            sample = source.load(index, mask=True)
            assert sample.mask is not None
            for image, mask in ((sample.image, sample.mask), (sample.image[:, ::-1], sample.mask[:, ::-1])):
                self._truth[self._key(self._tensor(image))] = (mask, sample.tags)

    @staticmethod
    def _tensor(image: np.ndarray[Any, Any]) -> Tensor:
        spec = InputSpec()
        return (
            torch.tensor((image / 255.0 - np.array(spec.mean)) / np.array(spec.std)).permute(2, 0, 1).float()
        )

    @staticmethod
    def _key(image: Tensor) -> bytes:
        return (image * 100).round().to(torch.int16).numpy().tobytes()

    localize_each = Localizer.localize_each

    def localize(self, images: Tensor, extras: bool = False) -> Localization:
        scores, maps = [], []
        for image in images:
            mask, tags = self._truth[self._key(image)]
            score = torch.full((10,), -4.0)
            score[list(tags)] = 2.0
            planes = torch.stack(
                [torch.from_numpy(np.where(mask == c + 1, self.height, 0.25)) for c in range(10)]
            )
            # one bright corner pixel makes min-max see the full range whatever the height
            planes[:, 0, 0], planes[:, 0, 1] = 1.0, 0.0
            scores.append(score)
            maps.append((1 - planes if self.inverted else planes).float())
        return Localization(torch.stack(scores), torch.stack(maps))


@pytest.fixture(scope="module")
def source() -> SceneSource:
    return SceneSource(31, count=12)


def test_a_perfect_model_gets_everything_and_the_threshold_between(source: SceneSource) -> None:
    model = Oracle(source, height=0.6)
    kinds = [MapKind("right"), MapKind("wrong", {"inverted": True})]
    measured = evaluate_localization(model, source, kinds=kinds)
    assert measured["images"] == 12 and measured["map"] == pytest.approx(1.0)
    assert measured["tag_f1"] == pytest.approx(1.0)
    assert measured["miou"]["right"] > 0.98 and measured["miou_predicted"]["right"] > 0.98
    assert 0.25 <= measured["background"]["right"] < 0.6
    assert measured["miou"]["wrong"] < 0.5
    assert len(measured["curve"]["right"]) == len(measured["thresholds"]) == 46
    recommended, options = recommend(measured, data="a test", kinds=kinds)
    assert options == {} and recommended.background == measured["background"]["right"]
    assert "12 images of a test: map right" in recommended.provenance
    # a class that no image shows cannot be tuned
    shown = {tag for index in range(12) for tag in source.load(index).tags}
    for index, threshold in enumerate(recommended.tag_thresholds):
        assert threshold == 0.5 or index in shown
    assert model.inverted is False


def test_the_recommended_kind_is_the_better_one(source: SceneSource) -> None:
    model = Oracle(source, height=0.6)
    kinds = [MapKind("wrong", {"inverted": True}), MapKind("right", {"inverted": False})]
    measured = evaluate_localization(model, source, kinds=kinds, flip=False)
    assert recommend(measured, data="x", kinds=kinds)[1] == {"inverted": False}


def test_real_models_offer_their_maps_and_come_back_unchanged(source: SceneSource) -> None:
    model = create_model("mctformer-v2", num_classes=10, img_size=64, backbone="vit_test_tiny").train()
    assert [kind.name for kind in map_kinds(model)] == [
        "fused", "fused+affinity", "fused+similarity",
        "patchcam", "patchcam+affinity", "patchcam+similarity",
        "attention", "attention+affinity", "attention+similarity",
    ]  # fmt: skip
    assert [kind.name for kind in current_kinds(model)] == ["fused", "fused+affinity", "fused+similarity"]
    v1 = create_model("mctformer-v1", num_classes=10, img_size=64, backbone="vit_test_tiny")
    assert [kind.name for kind in map_kinds(v1)] == [
        "attention", "attention+affinity", "attention+similarity",
    ]  # fmt: skip
    spec = InputSpec(patch=8, size_policy="fixed", size=64)
    measured = evaluate_localization(model, Cached(SceneSource(31, count=2)), spec=spec)
    assert set(measured["miou"]) == {kind.name for kind in map_kinds(model)}
    assert model.training and model.attention_type == "fused" and model.affinity is True


def test_without_masks_only_tags_are_measured(source: SceneSource) -> None:
    class Maskless(SceneSource):
        has_masks = False

        def load(self, index: int, **options: Any) -> Any:
            return super().load(index)

    measured = evaluate_localization(Oracle(source, height=0.6), Maskless(31, count=12))
    assert "miou" not in measured and measured["map"] == pytest.approx(1.0)
    recommended, options = recommend(measured, data="x", kinds=[])
    assert options == {} and "background not tuned" in recommended.provenance


def test_validation_can_be_stopped(source: SceneSource) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_localization(Oracle(source, height=0.6), source, tick=stop)


def test_f1_thresholds() -> None:
    probabilities = np.array([0.9, 0.8, 0.4, 0.3, 0.2])
    present = np.array([True, True, False, True, False])
    # tagging down to 0.3 gives 3 of 4 right and all found: 6/7; stopping at 0.8 gives 2*2/(2+3)
    assert best_f1_threshold(probabilities, present) == (pytest.approx(0.25), pytest.approx(6 / 7))
    assert best_f1_threshold(probabilities, np.array([True, True, False, False, False])) == (
        pytest.approx(0.6),
        1.0,
    )
    assert best_f1_threshold(np.array([0.5, 0.5]), np.array([True, False]))[1] == pytest.approx(2 / 3)
    threshold, f1 = best_f1_threshold(probabilities, np.zeros(5, bool))
    assert threshold == 0.5 and np.isnan(f1)
