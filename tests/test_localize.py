"""Pixels to model input, token maps to mask."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_rt.engines.base import EngineOutput
from wsss_rt.errors import ImageError
from wsss_rt.localize import (
    check_finite,
    decide,
    merge_passes,
    pass_sizes,
    predict_tags,
    prepare_passes,
    tag_probabilities,
)
from wsss_rt.model_card import InputSpec, MapRule, Upsample
from wsss_rt.resize import resize_map

NATIVE = InputSpec()


@pytest.fixture(scope="module")
def golden(goldens_dir: Path) -> dict[str, np.ndarray]:
    """The official generation loop's numbers for MCTformer-V2, one scale and its mirror image."""
    path = goldens_dir / "mctformer" / "e2e_v2_scale008_ss_K3_crf.npz"
    if not path.is_file():
        pytest.skip("the golden file is not there")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def test_input_tensor_is_the_official_one(golden: dict[str, np.ndarray]) -> None:
    passes = prepare_passes(golden["image"], NATIVE)
    assert [tuple(entry.images.shape[2:]) for entry in passes] == [tuple(golden["input_sizes_hw"][0])]
    expected = golden["input_s0_first_rows"]
    np.testing.assert_allclose(passes[0].images[0, :, :4, :16], expected, atol=1e-6)
    np.testing.assert_array_equal(passes[0].images[1], passes[0].images[0, :, :, ::-1])


def test_official_maps_end_to_end(golden: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    from wsss_rt.training.models import create_model, load_official, official_shapes

    model = create_model("mctformer-v2", num_classes=20, img_size=224, layers_fused=3).eval()
    weights = {}
    for key, shape in official_shapes(model).items():
        # the goldens' recipe
        values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, dtype=np.float32)
        shift = key.endswith(("norm1.weight", "norm2.weight")) or key == "norm.weight"
        weights[key] = torch.from_numpy(values * np.float32(0.08) + np.float32(shift))
    load_official(model, weights)
    present = [int(key) for key in golden["keys"]]
    maps = []
    for entry in prepare_passes(golden["image"], NATIVE):
        # one image at a time, as the official loop runs
        with torch.no_grad():
            rows = [model.localize(torch.from_numpy(image[None])).maps.numpy() for image in entry.images]
        maps.append(np.concatenate(rows))
    merged = merge_passes(maps, present, size=golden["image"].shape[:2])
    assert np.abs(merged - golden["cam"]).max() < 1e-4


def test_sizes_round_as_python_does() -> None:
    sizes, notes = pass_sizes((170, 125), NATIVE, scales=(1.0, 0.75, 1.25))
    assert sizes == [(170, 125), (128, 94), (212, 156)]
    assert notes == ()


def test_short_side_gives_whole_tokens() -> None:
    spec = InputSpec(size_policy="short_side", size=128, patch=8)
    (size,), _ = pass_sizes((500, 333), spec)
    assert size == (192, 128)


def test_fixed_ignores_the_aspect() -> None:
    spec = InputSpec(size_policy="fixed", size=224)
    sizes, _ = pass_sizes((500, 333), spec, scales=(1.0, 0.5))
    assert sizes == [(224, 224), (112, 112)]


@pytest.mark.parametrize("policy", [NATIVE, InputSpec(size_policy="short_side", size=224)])
@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (9000, 7000)])
def test_no_image_is_too_odd_for_the_model(policy: InputSpec, size: tuple[int, int]) -> None:
    (fitted,), notes = pass_sizes(size, policy)
    assert min(fitted) >= policy.patch
    assert fitted[0] * fitted[1] <= 1.02 * policy.max_pixels
    assert notes or policy.size_policy == "short_side"


@pytest.mark.parametrize("size", [(40, 1200), (2, 3000), (5000, 30)])
def test_a_strip_does_not_become_thousands_of_tokens(size: tuple[int, int]) -> None:
    """Drawn up to 160 pixels across it would take 12 GB of attention."""
    spec = InputSpec(size_policy="short_side", size=160, patch=8)
    (fitted,), notes = pass_sizes(size, spec)
    assert fitted[0] * fitted[1] <= 1.5 * 4096 * 8 * 8
    assert any("scaled down" in note for note in notes)
    # an ordinary panorama keeps the model's size
    assert pass_sizes((1600, 200), spec) == ([(1280, 160)], ())


def test_scaled_pixels_are_pillows_bicubic() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    plain, half = prepare_passes(image, NATIVE, scales=(1.0, 0.5), flip=False)
    assert plain.images.shape == (1, 3, 40, 60)
    pixels = np.asarray(Image.fromarray(image).resize((30, 20), Image.Resampling.BICUBIC), np.float32)
    expected = (pixels / 255 - np.array(NATIVE.mean, np.float32)) / np.array(NATIVE.std, np.float32)
    np.testing.assert_allclose(half.images[0], expected.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("upsample", ["bilinear", "aligned", "bicubic"])
@pytest.mark.parametrize("size", [(75, 100), (9, 13), (7, 9), (3, 2), (1, 5)])
def test_merging_on_tokens_equals_the_official_order(size: tuple[int, int], upsample: Upsample) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    passes = [random.random((2, 5, *grid), dtype=np.float32) for grid in ((7, 9), (5, 7), (7, 9))]
    present = [1, 4]
    total = np.zeros((2, *size), np.float32)
    for entry in passes:
        for row, tokens in enumerate(entry):
            grown = torch.nn.functional.interpolate(
                torch.from_numpy(tokens[None]),
                size=size,
                mode="bicubic" if upsample == "bicubic" else "bilinear",
                align_corners=upsample == "aligned",
            )[0].numpy()
            total += grown[present, :, ::-1] if row else grown[present]
    low, high = total.min((1, 2), keepdims=True), total.max((1, 2), keepdims=True)
    expected = (total - low) / (high - low + 1e-8)
    merged = merge_passes(passes, present, size=size, rule=MapRule(upsample))
    np.testing.assert_allclose(merged, expected, atol=1e-5)


def test_aligned_corners_keep_the_first_and_the_last_value() -> None:
    tokens = np.array([[0, 1], [2, 4]], np.float32)
    expected = [[0, 0.5, 1], [1, 1.75, 2.5], [2, 3, 4]]
    assert resize_map(tokens, (3, 3), upsample="aligned").tolist() == expected
    assert resize_map(tokens[:1, :1], (2, 1), upsample="aligned").tolist() == [[0], [0]]
    assert resize_map(tokens, (1, 4), upsample="aligned")[0] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_a_flat_map_is_nowhere() -> None:
    merged = merge_passes([np.full((1, 1, 4, 4), 3.0, np.float32)], [0], size=(8, 8))
    assert not merged.any()


def test_decide_is_argmax_with_a_constant_background() -> None:
    random = np.random.default_rng(2)
    maps = random.random((3, 20, 30), dtype=np.float32)
    maps[:, 0, 0] = 0.5
    maps[:, 0, 1] = (0.9, 0.9, 0.1)
    stack = np.concatenate([np.full((1, 20, 30), 0.5, np.float32), maps])
    values = np.array([0, 3, 8, 20])
    decision = decide(maps, [2, 7, 19], background=0.5)
    np.testing.assert_array_equal(decision.mask, values[stack.argmax(0)])
    assert decision.mask[0, 0] == 0
    assert decision.mask[0, 1] == 3
    ordered = np.sort(stack, axis=0)
    assert decision.confidence == pytest.approx(float((ordered[-1] - ordered[-2]).mean()), abs=1e-6)
    assert decision.class_scores[0] == pytest.approx(float(maps[0][decision.mask == 3].mean()), abs=1e-6)


def test_ignore_band_is_half_open() -> None:
    maps = np.array([[[0.29, 0.3, 0.45, 0.5, 0.9]]], np.float32)
    decision = decide(maps, [0], background=0.4, ignore_band=(0.3, 0.5))
    assert decision.mask.tolist() == [[0, 255, 255, 1, 1]]


def test_no_class_is_background_without_confidence() -> None:
    decision = decide(np.zeros((0, 4, 5), np.float32), [], background=0.4)
    assert decision.mask.shape == (4, 5)
    assert not decision.mask.any()
    assert decision.confidence == 0.0


def test_a_refined_background_plane_competes_per_pixel() -> None:
    maps = np.full((1, 1, 2), 0.5, np.float32)
    plane = np.array([[0.6, 0.4]], np.float32)
    assert decide(maps, [4], background=plane).mask.tolist() == [[0, 5]]


def test_tags_by_threshold() -> None:
    logits = [np.array([[4.0, 0.0, -4.0], [2.0, 0.0, -800.0]], np.float32)]
    probabilities = tag_probabilities(logits)
    assert probabilities[0] == pytest.approx(1 / (1 + np.exp(-3.0)), abs=1e-6)
    assert predict_tags(probabilities, ()) == (0, 1)
    assert predict_tags(probabilities, (0.99, 0.4, 0.0)) == (1, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["scores", "maps"])
def test_nonfinite_output_is_refused(where: str, bad: float) -> None:
    output = EngineOutput(np.zeros((1, 2), np.float32), np.zeros((1, 2, 3, 3), np.float32))
    check_finite([output])
    getattr(output, where).flat[1] = bad
    with pytest.raises(ImageError) as caught:
        check_finite([output])
    assert caught.value.code == "nonfinite_output"
