"""What is measured on: a folder of photographs, or generated scenes where none is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from wsss_rt.gate_images import GateImages, gate_images
from wsss_rt.localize import prepare_passes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.model_card import InputSpec, ModelCard

# a seed that nothing else uses
_SEED = 880_023
# images on which engines are compared
COMPARED = 8
# of a model that takes images as they are: most photographs of PASCAL VOC
_NATIVE = (375, 500)
# batches of one size that are run in turn
_BATCHES = 4


@dataclass(frozen=True)
class Inputs:
    """Images on the disk, and some of them decoded.

    Attributes:
        paths: files, in order.
        decoded: of these, what engines are compared on.
        source: what they are, in words, without a path.
    """

    paths: tuple[str, ...]
    decoded: GateImages
    source: str


@contextmanager
def open_inputs(folder: Path | None, limit: int) -> Iterator[Inputs]:
    """Find or draw the images; drawn ones are gone when the block ends.

    Args:
        folder: searched recursively; None draws scenes.
        limit: how many files, spread evenly over the folder.

    Raises:
        UsageError: the folder holds no image that can be read.
    """
    if folder is not None:
        yield _of_folder(folder, limit)
        return
    from wsss_rt.scenes import render_scene

    with TemporaryDirectory(prefix="wsss-rt-bench-") as drawn:
        for index in range(limit):
            (Path(drawn) / f"scene_{index:04d}.jpg").write_bytes(render_scene(_SEED, index).jpeg)
        found = _of_folder(Path(drawn), limit)
        decoded = replace(found.decoded, source=f"{len(found.decoded.images)} generated scenes")
        yield replace(found, decoded=decoded, source=f"{len(found.paths)} generated scenes")


def _of_folder(folder: Path, limit: int) -> Inputs:
    from wsss_rt.io.sources import find_images

    found = [str(source.path) for source in find_images([str(folder)], exclude=None)]
    count = min(limit, len(found))
    paths = tuple(found[index * len(found) // count] for index in range(count))
    decoded = gate_images(folder, count=min(COMPARED, len(found)), least=1)
    return Inputs(paths, decoded, f"{count} of {len(found)} given images")


def default_size(spec: InputSpec) -> tuple[int, int]:
    """(height, width) of a typical input of a model, pixels."""
    return _NATIVE if spec.size is None else (spec.size, spec.size)


def batches(
    images: Sequence[NDArray[np.uint8]], card: ModelCard, size: tuple[int, int], batch: int
) -> list[NDArray[np.float32]]:
    """Model inputs (batch, 3, H, W) of the images, resized to one size; a few different ones.

    Args:
        images: (H, W, 3) uint8 RGB, at least one; they are repeated where they do not suffice.
        card: of the model.
        size: (height, width), pixels.
        batch: images in each.
    """
    import cv2
    import numpy as np

    spec = replace(card.input, size_policy="native", max_pixels=size[0] * size[1])
    rows = []
    for image in islice(images, min(len(images), _BATCHES * batch)):
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        rows.append(prepare_passes(resized, spec, flip=False)[0].images)
    count = max(1, min(_BATCHES, len(rows) // batch))
    return [
        np.concatenate([rows[(index * batch + place) % len(rows)] for place in range(batch)])
        for index in range(count)
    ]
