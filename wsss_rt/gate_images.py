"""Images for the parity gate: the user's own, or generated scenes of sizes that are easy to get wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsss_rt.errors import ImageError, UsageError
from wsss_rt.io.atomic import StrPath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_IMAGES = 8
# a seed that neither training nor the benchmarks use
_SEED = 770_017
# (height, width): the grids of 224 and 160 px, then both orientations, hardly any a multiple of 8 or 16
_SIZES = ((224, 224), (160, 160), (167, 250), (250, 167), (201, 333), (125, 97), (96, 256), (199, 201))


@dataclass(frozen=True)
class GateImages:
    """What the gate compares on.

    Attributes:
        images: (H, W, 3) uint8 RGB each, upright.
        source: where they are from, in words, without a path.
    """

    images: tuple[NDArray[np.uint8], ...]
    source: str


def gate_images(folder: Path | None, *, count: int = MIN_IMAGES, least: int = MIN_IMAGES) -> GateImages:
    """Images of several sizes.

    Args:
        folder: of images, searched recursively; None generates scenes.
        count: how many.
        least: how many of the folder's images must be readable.

    Raises:
        UsageError: the folder holds fewer readable images than that.
    """
    if folder is None:
        return _scenes(count)
    from wsss_rt.io.sources import find_images

    paths = [source.path for source in find_images([str(folder)], exclude=None)]
    chosen = _readable(paths, count=count, tried=len(paths))
    if len(chosen) < least:
        raise UsageError(
            f"{folder} holds {len(chosen)} images that can be read",
            why=f"the parity check needs at least {least}",
            fix="give a folder with more images, or drop --images to check on generated scenes",
        )
    return GateImages(tuple(chosen), f"{len(chosen)} of {len(paths)} given images")


def images_to_label(paths: Sequence[StrPath], *, given: int = 4, count: int = MIN_IMAGES) -> GateImages:
    """Some of the images of a job, and generated scenes for the rest.

    Args:
        paths: of the job's images.
        given: how many of them at most.
        count: how many images in all.
    """
    chosen = _readable(paths, count=given, tried=4 * given)
    scenes = _scenes(count - len(chosen))
    if not chosen:
        return scenes
    return GateImages((*chosen, *scenes.images), f"{len(chosen)} of the images and {scenes.source}")


def _readable(paths: Sequence[StrPath], *, count: int, tried: int) -> list[NDArray[np.uint8]]:
    """Up to ``count`` readable images, spread over the paths, of which ``tried`` are opened at most."""
    from wsss_rt.io.decode import decode_image
    from wsss_rt.io.reading import read_bytes

    # spread over the folder, then the others, in case some of those cannot be decoded
    spread = [paths[index * len(paths) // count] for index in range(count)] if paths else []
    chosen: list[NDArray[np.uint8]] = []
    for path in list(dict.fromkeys([*spread, *paths[: tried + count]]))[:tried]:
        try:
            chosen.append(decode_image(read_bytes(path)).upright)
        except ImageError:
            # a broken file in the user's folder says nothing about the model
            continue
        if len(chosen) == count:
            break
    return chosen


def _scenes(count: int) -> GateImages:
    from wsss_rt.scenes import render_scene

    images = tuple(
        render_scene(_SEED, index, height=height, width=width).image
        for index, (height, width) in ((index, _SIZES[index % len(_SIZES)]) for index in range(count))
    )
    return GateImages(images, f"{count} generated scenes")
