"""MS COCO: instances JSON to tags, and to masks that are drawn when they are asked for.

Category ids have gaps; classes are the file's categories in ascending order of their ids, numbered from 1 in
masks without a gap (1..80). Objects are drawn from the largest to the smallest, so that one in front of
another, which is nearly always the smaller, stays visible; of equal ones the later id lies on top. A crowd
(``iscrowd``) is a coarse outline around many objects: it gives its tag, and in the mask it is ignored (255)
where no single object covers it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_rt.classes import ClassSet, load_classes
from wsss_rt.errors import UsageError, WsssError, nearest
from wsss_rt.tags import TagTable
from wsss_rt.training.config import DataSection
from wsss_rt.training.data.sources import Mask
from wsss_rt.training.data.splits import (
    Progress,
    Split,
    TrainingData,
    combine,
    counted,
    existing_files,
    refuse_tags,
)

_PREFIX = "instances_"
_MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Outline:
    """One annotation.

    Attributes:
        number: its id, for messages.
        value: what it is in the mask.
        segmentation: polygons as lists of x, y, or run lengths ``{"size": [h, w], "counts": ..}``.
    """

    number: int
    value: int
    segmentation: Any


@dataclass(frozen=True)
class CocoMask:
    """The mask of one image.

    Attributes:
        name: of the image, for messages.
        height, width: pixels.
        crowds, objects: what to draw; crowds lie below everything.
        wide: there are more than 254 classes.
    """

    name: str
    height: int
    width: int
    crowds: tuple[Outline, ...] = ()
    objects: tuple[Outline, ...] = ()
    wide: bool = False

    def __str__(self) -> str:
        return f"of the annotations of {self.name}"

    def draw(self) -> Mask:
        """(height, width): 0 background, class index + 1, ignore for a crowd.

        Raises:
            WsssError: an annotation cannot be drawn; it is named.
        """
        mask = np.zeros((self.height, self.width), np.uint16 if self.wide else np.uint8)
        for outline in self.crowds:
            mask[self._region(outline)] = outline.value
        regions = [(self._region(outline), outline) for outline in self.objects]
        for region, outline in sorted(regions, key=lambda pair: (-int(pair[0].sum()), pair[1].number)):
            mask[region] = outline.value
        return mask

    def _region(self, outline: Outline) -> NDArray[np.bool_]:
        from pycocotools import mask as run_lengths

        raw, size = outline.segmentation, (self.height, self.width)
        try:
            if isinstance(raw, Mapping):
                packed = _checked_runs(raw, size)
            else:
                polygons = [_checked_polygon(polygon, size) for polygon in raw]
                polygons = [polygon for polygon in polygons if len(polygon) >= 6]
                if not polygons:
                    return np.zeros(size, bool)
                packed = run_lengths.merge(run_lengths.frPyObjects(polygons, *size))
            region = np.asarray(run_lengths.decode(packed), bool)
            if region.shape != size:
                raise ValueError(f"its runs make {region.shape[1]}x{region.shape[0]} pixels")
            return region
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WsssError(
                f"cannot draw the annotation {outline.number} of {self.name}", why=str(error), code="bad_mask"
            ) from error


@dataclass
class _Instances:
    """What an instances file says.

    Attributes:
        path: the file.
        categories: names in the order of their ids.
        images: file name to (height, width).
        tags: file name to category names.
        outlines: file name to (annotation, category name, whether it is a crowd).
        findings: what does not fit together.
    """

    path: Path
    categories: tuple[str, ...]
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    tags: dict[str, dict[str, None]] = field(default_factory=dict)
    outlines: dict[str, list[tuple[int, str, bool, Any]]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


def is_coco(root: Path) -> bool:
    """Whether a folder holds ``annotations/instances_*.json``."""
    return bool(_splits(root))


def open_coco(root: Path, section: DataSection, progress: Progress = None) -> TrainingData:
    """Sources of a COCO tree: ``annotations/instances_SPLIT.json`` and the folder SPLIT or ``images/SPLIT``.

    An image without annotations is one without tags: it is counted and left out. Masks come with validation.

    Args:
        root: the tree.
        section: ``split`` and ``val_split`` default to train2014 and val2014, then to those of 2017.
        progress: told when a check takes a while.

    Raises:
        UsageError: no such split, or an unknown class.
        WsssError: a file that cannot be read, or most images are missing.
    """
    refuse_tags(section, "COCO")
    splits = _splits(root)
    split = section.split or next((name for name in ("train2014", "train2017") if name in splits), "")
    val_split = section.val_split or next((n for n in (split.replace("train", "val"),) if n in splits), "")
    instances = _read(root, split)
    # a file of ten classes without one that it shows is still a file of ten classes
    classes = load_classes(section.classes) if section.classes else ClassSet(instances.categories)
    train = _split(root, split, instances, None)
    validation = None
    if section.val_images and val_split and val_split != split:
        validation = _split(root, val_split, _read(root, val_split, outlines=True), classes)
    facts = {"data": f"COCO tree, split {split}", "tags": instances.path.name}
    return combine(classes, train, validation, section, facts, progress=progress)


def _splits(root: Path) -> list[str]:
    return sorted(path.stem.removeprefix(_PREFIX) for path in root.glob(f"annotations/{_PREFIX}*.json"))


def _split(root: Path, name: str, instances: _Instances, classes: ClassSet | None) -> Split:
    """The list; with masks where ``classes`` says what their values are."""
    names = list(instances.images)
    files = existing_files(names, (root / name, root / "images" / name))
    table = TagTable(
        instances.categories,
        {image: tuple(instances.tags.get(image, ())) for image in names},
        source=str(instances.path),
    )
    masks = {} if classes is None else {image: _mask(image, instances, classes) for image in files}
    return Split(name, names, files, table, masks, findings=instances.findings)


def _mask(name: str, instances: _Instances, classes: ClassSet) -> CocoMask:
    crowds, objects = [], []
    for number, category, crowd, segmentation in instances.outlines.get(name, ()):
        if crowd:
            crowds.append(Outline(number, classes.ignore, segmentation))
        elif category in classes.names:
            # one that is no class ends everything when the tags are checked
            objects.append(Outline(number, classes.index(category) + 1, segmentation))
    return CocoMask(name, *instances.images[name], tuple(crowds), tuple(objects), classes.wide)


def _read(root: Path, split: str, *, outlines: bool = False) -> _Instances:
    path = root / "annotations" / f"{_PREFIX}{split}.json"
    if not path.is_file():
        found = _splits(root)
        raise UsageError(
            f"no split {split!r} in {root}",
            why="" if split else "neither train2014 nor train2017 is there",
            fix=nearest(split, found) if found else f"annotations/{_PREFIX}train2014.json is looked for",
        )
    try:
        raw = json.loads(path.read_bytes())
        return _parsed(path, raw, outlines=outlines)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise WsssError(
            f"cannot read {path}",
            why=why,
            fix="expected is an instances file of COCO: images, annotations and categories",
            code="bad_annotations",
        ) from error


def _parsed(path: Path, raw: Any, *, outlines: bool) -> _Instances:
    categories = {_whole(entry["id"]): str(entry["name"]) for entry in raw["categories"]}
    found = _Instances(path, tuple(categories[number] for number in sorted(categories)))
    names: dict[int, str] = {}
    for entry in raw["images"]:
        name = str(entry["file_name"])
        size = _whole(entry["height"]), _whole(entry["width"])
        if min(size) < 1 or math.prod(size) > _MAX_PIXELS:
            raise ValueError(f"{name} is said to have {size[1]}x{size[0]} pixels")
        if name in found.images or entry["id"] in names:
            raise ValueError(f"{name} or its id {entry['id']} is listed twice")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"the name {name!r} leads out of the image folder")
        names[_whole(entry["id"])], found.images[name] = name, size
    strange_images: list[str] = []
    strange_categories: list[str] = []
    slivers: list[str] = []
    for entry in raw["annotations"]:
        number, image, category = (_whole(entry[key]) for key in ("id", "image_id", "category_id"))
        if image not in names:
            strange_images.append(f"{number} (image {image})")
            continue
        if category not in categories:
            strange_categories.append(f"{number} (category {category})")
            continue
        found.tags.setdefault(names[image], {})[categories[category]] = None
        segmentation = entry.get("segmentation", [])
        if isinstance(segmentation, list) and any(len(polygon) < 6 for polygon in segmentation or [[]]):
            slivers.append(str(number))
        if outlines:
            record = (number, categories[category], bool(entry.get("iscrowd", 0)), segmentation)
            found.outlines.setdefault(names[image], []).append(record)
    if strange_categories:
        raise ValueError(
            "; ".join(counted(strange_categories, "annotations of a category that is not listed"))
        )
    found.findings += counted(strange_images, "annotations of images that are not listed, left out")
    if outlines:
        found.findings += counted(slivers, "annotations with less than three corners, which enclose nothing")
    return found


def _checked_polygon(polygon: Any, size: tuple[int, int]) -> list[float]:
    """The corners, if they lie in the image or up to its own size beside it.

    pycocotools walks along every edge: one a billion pixels long would take all memory.
    """
    corners = [float(value) for value in polygon]
    if len(corners) % 2:
        raise ValueError(f"a polygon has {len(corners)} numbers")
    for values, side in ((corners[::2], size[1]), (corners[1::2], size[0])):
        if not all(-side <= value <= 2 * side for value in values):
            raise ValueError("a polygon lies outside the image")
    return corners


def _checked_runs(raw: Mapping[str, Any], size: tuple[int, int]) -> Any:
    """Run lengths as pycocotools packs them."""
    from pycocotools import mask as run_lengths

    if tuple(raw["size"]) != size:
        raise ValueError(f"its runs are for {raw['size']}, the image has {list(size)} (height, width)")
    counts = raw["counts"]
    if isinstance(counts, (str, bytes)):
        counts = _unpacked(counts.encode("ascii") if isinstance(counts, str) else counts)
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != math.prod(size):
        raise ValueError(f"its runs do not make {math.prod(size)} pixels")
    return run_lengths.frPyObjects({"size": list(size), "counts": list(counts)}, *size)


def _unpacked(packed: bytes) -> list[int]:
    """Run lengths from COCO's text: digits of base 32, from the fourth on differences to the last but one.

    pycocotools could do this, but it is C: the runs are checked before it sees them.
    """
    counts: list[int] = []
    value = shift = 0
    for byte in packed:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ValueError("its packed runs are damaged")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("its packed runs end in the middle")
    return counts


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is no whole number")
    return value
