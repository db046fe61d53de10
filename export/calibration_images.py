"""Images that calibrate a quantised model, and others that judge it, with their truth where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsss_rt.errors import ImageError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.io.sources import SourceImage
    from wsss_rt.model_card import ModelCard

# in place of a folder
SCENES = "scenes"
CALIBRATING, JUDGING = 32, 64
# of each
LEAST = 8
# seeds that neither training, nor the parity gate, nor the benchmarks use
_CALIBRATION_SEED, _JUDGE_SEED = 770_018, 770_019


@dataclass(frozen=True)
class CalibrationImages:
    """What a model is quantised with.

    Attributes:
        calibrating: (H, W, 3) uint8 RGB each, upright, of which ranges are taken.
        judging: others of the same kind, which the gate compares on.
        truths: per image of ``judging`` its true mask (H, W), 255 unknown, or None.
        source: where they are from, in words, without a path.
    """

    calibrating: tuple[NDArray[np.uint8], ...]
    judging: tuple[NDArray[np.uint8], ...]
    truths: tuple[NDArray[np.uint8] | None, ...]
    source: str


def calibration_images(
    calibrate: str, truth: Path | None, card: ModelCard, *, judging: int = JUDGING
) -> CalibrationImages:
    """Images from a folder, or generated scenes.

    Every other image of a folder calibrates, the rest judges: no image does both.

    Args:
        calibrate: a folder, searched recursively, or ``scenes``.
        truth: folder of masks with the images' names; None where there is no truth. Scenes bring theirs.
        card: of the model; scenes have truth only for a model of their classes.
        judging: how many at most.

    Raises:
        UsageError: no folder, too few readable images in it, or masks that do not fit.
    """
    if calibrate == SCENES:
        if truth is not None:
            raise UsageError("--truth goes with a folder", why="scenes bring their own masks")
        return _scenes(card, judging)
    from wsss_rt.io.decode import decode_image
    from wsss_rt.io.reading import read_bytes
    from wsss_rt.io.sources import find_images

    folder = Path(calibrate)
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}", fix="--calibrate takes a folder of images, or scenes")
    sources = find_images([str(folder)], exclude=None)
    masks = {} if truth is None else _masks_of([source.relative for source in sources], truth)
    calibrating: list[NDArray[np.uint8]] = []
    judged: list[NDArray[np.uint8]] = []
    truths: list[NDArray[np.uint8] | None] = []
    turn = unreadable = 0
    for source in _spread(sources, 2 * max(CALIBRATING, judging)):
        to_judge = turn % 2 == 1
        if len(judged if to_judge else calibrating) >= (judging if to_judge else CALIBRATING):
            turn += 1
            continue
        try:
            decoded = decode_image(read_bytes(source.path))
        except ImageError:
            # a broken file in the user's folder says nothing about the model
            unreadable += 1
            continue
        turn += 1
        if to_judge:
            judged.append(decoded.upright)
            truths.append(_read_truth(masks.get(source.relative), decoded.orientation, decoded.upright, card))
        else:
            calibrating.append(decoded.upright)
    if len(judged) < LEAST or len(calibrating) < LEAST:
        raise UsageError(
            f"{folder} holds {len(judged) + len(calibrating)} images that can be read, {unreadable} others",
            why=f"calibration needs {LEAST}, and judging the result {LEAST} more",
            fix="give a folder with more images of the kind that will be labelled",
        )
    source_text = f"{len(calibrating)} and {len(judged)} of {len(sources)} given images"
    return CalibrationImages(tuple(calibrating), tuple(judged), tuple(truths), source_text)


def _spread(sources: Sequence[SourceImage], count: int) -> list[SourceImage]:
    """``count`` of them, evenly, then the others, in case some cannot be read."""
    chosen = sorted({index * len(sources) // count for index in range(count)}) if len(sources) > count else []
    rest = sorted(set(range(len(sources))) - set(chosen))
    return [sources[index] for index in (*chosen, *rest)]


def _masks_of(images: Sequence[str], truth: Path) -> dict[str, Path]:
    from wsss_rt.pairing import match_names, open_truth, without_ending

    folder = open_truth(truth).folder
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.png")}
    names = {without_ending(name): name for name in images}
    matched = match_names(names, found)
    if not matched:
        raise UsageError(f"no mask in {truth} has the name of an image")
    return {names[key]: found[value] for key, value in matched.items()}


def _read_truth(
    path: Path | None, orientation: int, image: NDArray[np.uint8], card: ModelCard
) -> NDArray[np.uint8] | None:
    from wsss_rt.formats.png import read_mask
    from wsss_rt.io.decode import to_upright

    if path is None:
        return None
    mask = np.asarray(to_upright(read_mask(path), orientation))
    if mask.shape != image.shape[:2]:
        raise UsageError(
            f"{path} is {mask.shape[1]}x{mask.shape[0]} px, its image {image.shape[1]}x{image.shape[0]}"
        )
    largest = int(mask[mask != 255].max(initial=0))
    if largest > len(card.classes):
        raise UsageError(
            f"{path} holds the value {largest}", why=f"the model has {len(card.classes)} classes"
        )
    return mask


def _scenes(card: ModelCard, judging: int) -> CalibrationImages:
    from wsss_rt.classes import SCENE_CLASSES
    from wsss_rt.scenes import render_scene

    calibrating = tuple(render_scene(_CALIBRATION_SEED, index).image for index in range(CALIBRATING))
    judged = [render_scene(_JUDGE_SEED, index) for index in range(judging)]
    known = tuple(card.classes) == tuple(SCENE_CLASSES)
    truths = tuple(scene.mask if known else None for scene in judged)
    source = f"{len(calibrating)} and {len(judged)} generated scenes"
    return CalibrationImages(calibrating, tuple(scene.image for scene in judged), truths, source)
