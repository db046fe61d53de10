"""Which prediction belongs to which truth: by relative path, else by file name."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsss_rt.classes import ClassSet, load_classes
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.formats.png import MASKS
from wsss_rt.io.decode import printable

SHOWN = 10
# where masks of a VOC tree lie
_TRUTH_FOLDER = "SegmentationClass"
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Pair:
    """Two masks of one image; ``key`` is the truth's relative path without its ending."""

    key: str
    prediction: Path
    truth: Path


@dataclass(frozen=True)
class Pairs:
    """All masks of two folders, matched.

    Attributes:
        matched: sorted by key.
        missing: keys of truths without a prediction.
        extra: keys of predictions that no truth asked for.
    """

    matched: tuple[Pair, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]


@dataclass(frozen=True)
class MaskFolder:
    """A folder of masks, and what lies beside it.

    Attributes:
        folder: where the PNGs are.
        root: the folder that was given.
        classes: names of the mask values, where a file beside the masks tells them.
    """

    folder: Path
    root: Path
    classes: ClassSet | None


def open_prediction(path: Path) -> MaskFolder:
    """A folder of masks, or an output folder of ``label``, whose run.json names the classes.

    Raises:
        UsageError: no such folder.
    """
    _require_folder(path)
    if (path / MASKS).is_dir():
        return MaskFolder(path / MASKS, path, run_classes(path))
    return MaskFolder(
        path, path, run_classes(path.absolute().parent) if path.absolute().name == MASKS else None
    )


def open_truth(path: Path) -> MaskFolder:
    """A folder of masks, or a VOC tree, whose classes.txt names the classes where it is there.

    Raises:
        UsageError: no such folder.
    """
    _require_folder(path)
    folder = path / _TRUTH_FOLDER if (path / _TRUTH_FOLDER).is_dir() else path
    root = folder.parent if folder.name == _TRUTH_FOLDER else path
    listed = root / "classes.txt"
    return MaskFolder(folder, root, load_classes(listed) if listed.is_file() else None)


def pair_masks(prediction: Path, truth: Path, *, wanted: Sequence[str] | None = None) -> Pairs:
    """Match the PNGs of two folders.

    Args:
        prediction: folder of masks.
        truth: folder of masks.
        wanted: only these truths, by relative path or file name, with or without an ending.

    Raises:
        UsageError: no truth at all, a wanted truth that does not exist, or two that fit one name.
    """
    truths, predictions = _masks(truth), _masks(prediction)
    if not truths:
        raise UsageError(f"no PNG masks in {printable(truth)}")
    if wanted is not None:
        chosen = select_names(truths, wanted, missing=f"mask in {printable(truth)}")
        truths = {key: truths[key] for key in chosen}
    matches = match_names(truths, predictions)
    pairs = [Pair(key, predictions[matches[key]], truths[key]) for key in truths if key in matches]
    used = set(matches.values())
    return Pairs(
        tuple(pairs),
        tuple(key for key in truths if key not in matches),
        tuple(key for key in predictions if key not in used),
    )


def match_names(truths: Iterable[str], predictions: Iterable[str], *, what: str = "masks") -> dict[str, str]:
    """Which prediction belongs to which truth: the one of the same path, else the only one of the same name.

    Args:
        truths, predictions: relative paths without the ending of their own files.
        what: what the predictions are, for messages.

    Returns:
        Truth to prediction; truths without one are not in it.

    Raises:
        UsageError: code ``ambiguous_names``: several fit one name, or one fits several truths.
    """
    keys, predictions = list(truths), dict.fromkeys(predictions)
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise UsageError(
            f"{what} of the name {printable(repeated[0])} cannot be told apart",
            why="several images of the truth have this name and differ in their ending alone",
            code="ambiguous_names",
        )
    matches = {key: key for key in keys if key in predictions}
    free = defaultdict(list)
    for key in predictions:
        if key not in matches:
            for name in {_file_name(key), _file_name(without_ending(key))}:
                free[name].append(key)
    taken: dict[str, str] = {}
    for key in keys:
        if key in matches:
            continue
        candidates = free.get(_file_name(key), [])
        for candidate in candidates:
            if len(candidates) > 1 or candidate in taken:
                also = f"{taken[candidate]} and {key}" if candidate in taken else key
                raise UsageError(
                    f"{what} of the name {printable(_file_name(key))} cannot be told apart",
                    why=f"{printable(also)} fit {', '.join(printable(name) for name in candidates)}",
                    fix="give both folders the same tree",
                    code="ambiguous_names",
                )
            matches[key] = candidate
            taken[candidate] = key
    return matches


def read_list(path: Path) -> list[str]:
    """Names of a list, one a line, as in VOC's ImageSets; empty lines are left out.

    Raises:
        UsageError: it cannot be read, or is empty.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the list {printable(path)}", why=error.strerror or "") from error
    names = [os.fsdecode(line.strip()) for line in raw.removeprefix(b"\xef\xbb\xbf").splitlines()]
    kept = [name for name in names if name]
    if not kept:
        raise UsageError(f"the list {printable(path)} is empty")
    return kept


def some(names: Iterable[str]) -> str:
    """The first ten of a list, and how many there are."""
    listed = list(names)
    shown = ", ".join(printable(name) for name in listed[:SHOWN])
    return shown if len(listed) <= SHOWN else f"{shown} and {len(listed) - SHOWN} more"


def without_ending(key: str) -> str:
    """``a.jpg`` to ``a``, for the endings of images alone: a name may hold other dots."""
    lower = key.lower()
    for ending in _IMAGE_ENDINGS:
        if lower.endswith(ending):
            return key[: -len(ending)]
    return key


def refuse_missing(
    missing: Sequence[str],
    total: int,
    *,
    prediction: Path,
    fix: str = "label them, or give --allow-missing to leave them out",
) -> None:
    """An error that names the truths without a prediction.

    Raises:
        WsssError: code ``missing_predictions``, if there are any.
    """
    if not missing:
        return
    raise WsssError(
        f"{len(missing)} of {total} images have no prediction in {printable(prediction)}: {some(missing)}",
        why="a mean over the rest would look like a result of the whole set",
        fix=fix,
        code="missing_predictions",
    )


def select_names(truths: Iterable[str], wanted: Sequence[str], *, missing: str) -> list[str]:
    """The truths that a list names, sorted.

    Args:
        truths: relative paths, with or without an ending.
        wanted: paths or file names, with or without an ending.
        missing: what the others of the list lack, for the message.

    Raises:
        UsageError: a name fits several truths, or none.
    """
    exact, by_path, by_name = dict.fromkeys(truths), defaultdict(list), defaultdict(list)
    for key in exact:
        by_path[without_ending(key)].append(key)
        by_name[_file_name(without_ending(key))].append(key)
    chosen: set[str] = set()
    unknown: list[str] = []
    for name in wanted:
        given = name.replace(os.sep, "/").removeprefix("./")
        plain = without_ending(given)
        found = [key for key in (given, plain) if key in exact][:1]
        found = found or by_path.get(plain) or by_name.get(_file_name(plain), [])
        if len(found) > 1:
            raise UsageError(f"{printable(name)} of the list fits {some(found)}", code="ambiguous_names")
        if found:
            chosen.add(found[0])
        else:
            unknown.append(name)
    if unknown:
        raise UsageError(
            f"{len(unknown)} of {len(wanted)} names of the list have no {missing}: {some(unknown)}",
            code="missing_truth",
        )
    return sorted(chosen)


def _masks(folder: Path) -> dict[str, Path]:
    """Relative path without ``.png`` to path, sorted."""
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(".png") and not name.startswith("."):
                path = os.path.join(parent, name)
                found[os.path.relpath(path, folder).replace(os.sep, "/")[:-4]] = Path(path)
    return dict(sorted(found.items()))


def run_classes(out: Path) -> ClassSet | None:
    """The classes that the run.json of an output folder names; None where there is no such file.

    Raises:
        WsssError: it cannot be read.
    """
    path = out / "run.json"
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_bytes())["model"]["classes"]
        return ClassSet(tuple(str(name) for name in names))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WsssError(
            f"cannot read the class names in {printable(path)}", why=str(error), fix="give the masks folder"
        ) from error


def _file_name(key: str) -> str:
    return key.rpartition("/")[2]


def _require_folder(path: Path) -> None:
    if not path.is_dir():
        raise UsageError(f"no folder {printable(path)}", fix="check the spelling")
