"""Images with a mask each, as `wsss-rt label` wrote them: what segmenters learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from wsss_rt.classes import BACKGROUND, IGNORE, ClassSet, load_classes
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.io.mask_names import mask_name, special_masks
from wsss_rt.pairing import match_names, open_prediction, without_ending
from wsss_rt.training.config import DataSection
from wsss_rt.training.data.sources import FileSource, Item, read_mask, read_rgb
from wsss_rt.training.data.splits import Progress, TrainingData, hold_out
from wsss_rt.training.data.validate import some

_VOC_IMAGES = "JPEGImages"


def open_masks(
    root: Path, files: Mapping[str, Path], section: DataSection, progress: Progress = None
) -> TrainingData:
    """Sources of the images that have a mask.

    A mask belongs to the image whose name `label` made its name from; where the folders differ, to the only
    image of its file name. Masks lie in the raster of the image file, as `label` writes them. Images without
    a mask, and those that cannot be decoded, are left out and counted.

    Args:
        root: the folder that the images' names are relative to.
        files: images by name.
        section: its ``masks`` (an output folder of `label`, or a folder of PNGs), ``classes``,
            ``val_images`` and ``check``.
        progress: told when a check takes a while.

    Raises:
        UsageError: no masks there, or nobody says which classes they hold.
        WsssError: no image has a mask, a mask cannot be read, has another size than its image, or holds
            values that are no class.
    """
    folder = open_prediction(Path(section.masks))
    classes = _classes(folder.classes, root, section)
    found = _match(files, folder.folder)
    if not found:
        raise WsssError(
            f"none of the {len(files)} images in {root} has a mask in {folder.folder}",
            why=f"the first image is {next(iter(files), 'missing')}",
            fix="give the folder that was labelled as --data, and the output of `wsss-rt label` as --masks",
            code="no_masks",
        )
    messages = [f"{len(found)} of {len(files)} images have a mask, {len(classes)} classes"]
    if progress is not None and len(found) > 2000:
        progress(f"reading {len(found)} images and masks once (data.check = false skips the images)")
    items, broken, digest = _read(files, found, classes, check=section.check)
    if broken:
        messages.append(f"warning: {len(broken)} images cannot be decoded, left out: {some(broken)}")
    if not items:
        raise WsssError("no image with a mask can be decoded", why=some(broken), code="no_images")
    train, held = hold_out(items, section.val_images)
    messages.append(f"validation on {len(held)} images, against the given masks")
    facts = {
        "data": "images with masks",
        "masks": Path(section.masks).name,
        "images": {"listed": len(files), "used": len(items), "broken": len(broken)},
        "validation": len(held),
    }
    return TrainingData(
        classes, FileSource(train), FileSource(held) if held else None, facts, digest, messages
    )


def images_below(root: Path, files: Mapping[str, Path]) -> tuple[Path, dict[str, Path]]:
    """The folder of the images, and them by their name below it: ``JPEGImages`` in a VOC tree."""
    if not (root / _VOC_IMAGES).is_dir():
        return root, dict(files)
    inner = f"{_VOC_IMAGES}/"
    kept = {name.removeprefix(inner): path for name, path in files.items() if name.startswith(inner)}
    return root / _VOC_IMAGES, kept


def _classes(of_run: ClassSet | None, root: Path, section: DataSection) -> ClassSet:
    if section.classes:
        return load_classes(section.classes)
    if of_run is not None:
        return of_run
    for folder in (root, root.parent):
        if (folder / "classes.txt").is_file():
            return load_classes(folder / "classes.txt")
    raise UsageError(
        f"nobody says which classes the masks in {section.masks} hold",
        why="there is no run.json beside them",
        fix="add --classes: 'voc', 'coco', 'scenes', or a file of names",
    )


def _match(files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    special = special_masks(files)
    named = {name: folder / special.get(name, mask_name(name)) for name in files}
    found = {name: path for name, path in named.items() if path.is_file()}
    if found:
        return found
    masks = {path.relative_to(folder).as_posix()[: -len(".png")]: path for path in folder.rglob("*.png")}
    stems = {without_ending(name): name for name in files}
    return {stems[stem]: masks[mask] for stem, mask in match_names(stems, masks).items()}


def _read(
    files: Mapping[str, Path], masks: Mapping[str, Path], classes: ClassSet, *, check: bool
) -> tuple[list[Item], list[str], str]:
    """Items of the images that decode, the others with their reason, and a fingerprint of names and masks."""

    def look(name: str) -> tuple[Item, bytes, list[int]] | str:
        mask = read_mask(masks[name])
        values = [int(value) for value in np.unique(mask) if value not in (BACKGROUND, IGNORE)]
        tags = tuple(value - 1 for value in values if value <= len(classes))
        item = Item(files[name], name, tags, masks[name])
        if check:
            try:
                read_rgb(item.path, name)
            except WsssError as error:
                return f"{name} ({error.why})"
            # the sizes of the two are compared here, and not in the middle of the night
            FileSource([item]).load(0, mask=True)
        return item, hashlib.sha256(mask.tobytes()).digest(), [v for v in values if v > len(classes)]

    with ThreadPoolExecutor(2) as pool:
        looked: Sequence[tuple[Item, bytes, list[int]] | str] = list(pool.map(look, masks))
    items, broken, strange = [], [], []
    digest = hashlib.sha256("\n".join(classes.names).encode())
    for entry in looked:
        if isinstance(entry, str):
            broken.append(entry)
            continue
        item, content, outside = entry
        items.append(item)
        digest.update(item.name.encode(errors="surrogateescape") + b"\0" + content)
        if outside:
            strange.append(f"{item.name} ({', '.join(map(str, outside[:3]))})")
    if strange:
        raise WsssError(
            f"{len(strange)} masks hold values that are no class: {some(strange)}",
            why=f"{len(classes)} classes take the values 1 to {len(classes)}; 0 is background, 255 unknown",
            fix="name the classes of the masks with --classes",
            code="values_outside",
        )
    return items, broken, digest.hexdigest()
