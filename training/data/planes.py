"""Planes beside images: saliency maps, masks of a CRF. A folder of PNGs each, found by the image's name.

They lie in the raster of the image file, as ``label`` writes masks, and turn with the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from wsss_rt.classes import IGNORE
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.io.decode import to_upright
from wsss_rt.pairing import match_names, open_prediction, some, without_ending
from wsss_rt.training.data.joint import JointTransform, check_joint, joint_transform
from wsss_rt.training.data.loader import AUGMENT_SEED, Key
from wsss_rt.training.data.sources import FileSource, read_mask
from wsss_rt.training.data.transforms import local_seed

if TYPE_CHECKING:
    from wsss_rt.training.config import Augment, DataSection
    from wsss_rt.training.data.sources import Source

#: Settings of the data section that name a folder of planes, and what lies around such a plane.
PLANES: Mapping[str, int] = {"saliency": 0, "low_alpha": IGNORE, "high_alpha": IGNORE}


@dataclass(frozen=True)
class PlaneFiles:
    """The planes of a training set.

    Attributes:
        names: keys of :data:`PLANES`, in the order in which a model wants them.
        paths: per image, in the order of the source, a file for each name.
        fingerprint: changes when a file's name does.
    """

    names: tuple[str, ...]
    paths: tuple[tuple[Path, ...], ...]
    fingerprint: str

    @property
    def fills(self) -> tuple[int, ...]:
        """What lies around each."""
        return tuple(PLANES[name] for name in self.names)


def find_planes(source: Source, section: DataSection, names: Sequence[str]) -> PlaneFiles:
    """The files of every training image.

    Args:
        source: of the images; must be of files.
        section: says where the folders are; an output folder of ``label`` stands for its masks.
        names: which of :data:`PLANES` are wanted.

    Raises:
        UsageError: generated images, no such folder, or an augmentation that planes cannot follow.
        WsssError: an image has no file in one of the folders.
    """
    if not isinstance(source, FileSource):
        raise UsageError(
            "scenes made while training have no such planes",
            fix="write them with `wsss-rt scenes`, and give that folder as --data",
        )
    check_joint(section.augment)
    stems = [without_ending(item.name) for item in source.items]
    columns = []
    for name in names:
        folder = open_prediction(Path(getattr(section, name))).folder
        files = {path.relative_to(folder).as_posix()[: -len(".png")]: path for path in folder.rglob("*.png")}
        found = match_names(stems, files, what=f"{name.replace('_', '-')} planes")
        missing = [stem for stem in stems if stem not in found]
        if missing:
            raise WsssError(
                f"{len(missing)} of {len(stems)} images have no PNG in {folder}",
                why=some(missing),
                fix="write one for each, under the image's name",
                code="no_planes",
            )
        columns.append([files[found[stem]] for stem in stems])
    rows = tuple(zip(*columns, strict=True))
    text = "\n".join("\0".join(path.name for path in row) for row in rows)
    return PlaneFiles(tuple(names), rows, hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest())


class PlaneImages(Dataset[tuple[torch.Tensor, ...] | WsssError]):
    """Augmented images, targets and planes by ``Key``; what cannot be read is its error.

    Args:
        source: images.
        planes: of these images.
        num_classes: C; None leaves the tags out, so that the planes alone are the targets.
        augment: one of ``JOINT``.
        crop_scale: for ``light``: share of the area that a crop keeps.
        seed: of the augmentation.
    """

    def __init__(
        self,
        source: Source,
        planes: PlaneFiles,
        *,
        num_classes: int | None,
        augment: Augment,
        crop_scale: Sequence[float],
        seed: int,
    ) -> None:
        self.source, self.planes, self.num_classes = source, planes, num_classes
        self.augment, self.crop_scale, self.seed = augment, crop_scale, seed
        self._transforms: dict[tuple[int, int], JointTransform] = {}

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, ...] | WsssError:
        """(3, height, width) image, (C,) tags where they are wanted, (K, height, width) uint8 planes."""
        position, index, height, width = key
        size = (height, width)
        if size not in self._transforms:
            self._transforms[size] = joint_transform(
                self.augment, size, self.planes.fills, crop_scale=self.crop_scale
            )
        with local_seed(AUGMENT_SEED, self.seed, position):
            try:
                sample = self.source.load(index, size=size)
                turn = sample.orientation
                planes = [to_upright(read_mask(path), turn) for path in self.planes.paths[index]]
            except WsssError as error:
                # raised in a worker it would arrive buried in the worker's traceback
                return WsssError(str(error), code=error.code)
            for path, plane in zip(self.planes.paths[index], planes, strict=True):
                if plane.shape != sample.image.shape[:2]:
                    return WsssError(
                        f"{path} is {plane.shape[1]}x{plane.shape[0]}",
                        why=f"its image {sample.name} is {sample.image.shape[1]}x{sample.image.shape[0]}",
                        code="plane_size",
                    )
            image, moved = self._transforms[size](sample.image, planes)
        stacked = torch.from_numpy(np.stack(moved))
        if self.num_classes is None:
            return image, stacked
        tags = torch.zeros(self.num_classes)
        tags[list(sample.tags)] = 1.0
        return image, tags, stacked
