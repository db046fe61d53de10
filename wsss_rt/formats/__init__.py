"""What ``label`` writes: one module per format, all with the same few methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wsss_rt.errors import UsageError, nearest

if TYPE_CHECKING:
    from wsss_rt.classes import ClassSet
    from wsss_rt.results import Result


class Format(StrEnum):
    """Names of the formats, as ``--format`` takes them."""

    PNG = "png"
    COCO = "coco"
    REPORT = "report"
    OVERLAY = "overlay"
    NPZ = "npz"


DESCRIPTIONS: Mapping[Format, str] = {
    Format.PNG: "masks/: a class number per pixel, indexed PNG (16-bit gray for more than 254 classes); "
    "always written, the others are built from it",
    Format.COCO: "annotations.coco.json: compressed RLE, one annotation per class and image",
    Format.REPORT: "report.html: overlays, the least confident first; opens without a network",
    Format.OVERLAY: "overlays/: the image with its mask drawn over it and a legend",
    Format.NPZ: "maps/: normalised maps per class, for `wsss-rt eval` with --sweep or --task localization",
}
DEFAULT_FORMATS = (Format.PNG, Format.COCO, Format.REPORT)


class Writer(Protocol):
    """Writes one format of a run.

    Attributes:
        name: as in :class:`Format`.
        keys: the keys that :meth:`add` gives, each the path of a file relative to the output folder.
        needs: optional fields of the result that :meth:`add` reads: ``image``, ``maps``.
    """

    name: str
    keys: tuple[str, ...]
    needs: frozenset[str]

    def add(self, result: Result) -> dict[str, str]:
        """Write the files of one labelled image; thread-safe, and the same bytes for the same result.

        Returns:
            Paths relative to the output folder, to be kept in the image's record.

        Raises:
            WsssError: a file cannot be written.
        """
        ...

    def finish(self, records: Iterable[dict[str, Any]]) -> list[Path]:
        """Write the file that covers the whole run, from the records and the files on the disk.

        So it is complete after a resume, and the memory it takes does not grow with the pixels.

        Args:
            records: the manifest's, one per image, failures included, in any order; read once.

        Returns:
            The files written.

        Raises:
            WsssError: a mask is missing, or the file cannot be written.
        """
        ...


def parse_formats(names: Iterable[str]) -> tuple[Format, ...]:
    """Formats by name, without repetition, ``png`` first; a name may be a list with commas.

    Raises:
        UsageError: an unknown name, with the nearest one.
    """
    known = [entry.value for entry in Format]
    wanted = [part.strip().lower() for name in names for part in str(name).split(",") if part.strip()]
    for name in wanted:
        if name not in known:
            raise UsageError(f"unknown format {name!r}", fix=nearest(name, known))
    return tuple(dict.fromkeys([Format.PNG, *(Format(name) for name in wanted)]))


def needs(names: Iterable[str]) -> frozenset[str]:
    """Optional fields of a result that these formats read: ``image``, ``maps``."""
    table = {Format.OVERLAY: "image", Format.REPORT: "image", Format.NPZ: "maps"}
    return frozenset(table[entry] for entry in parse_formats(names) if entry in table)


def open_writers(
    names: Sequence[str], out: Path, classes: ClassSet, *, context: Mapping[str, Any]
) -> list[Writer]:
    """Writers of the formats, ``png`` always among them and first.

    Args:
        names: see :class:`Format`.
        out: output folder; nothing is written before the first ``add``.
        classes: the model's classes.
        context: what the collective files say of the run: the fields of run.json (``model``, ``thresholds``,
            ``identity``, ``engine``, ``config``). Kept by reference and read in ``finish``. Times of day and
            durations do not belong here: the files of an interrupted run must equal those of another.

    Raises:
        UsageError: an unknown name.
    """
    from wsss_rt.formats.coco import CocoWriter
    from wsss_rt.formats.npz import NpzWriter
    from wsss_rt.formats.overlay import OverlayWriter
    from wsss_rt.formats.png import PngWriter
    from wsss_rt.report import ReportWriter

    makers: Mapping[Format, Callable[[], Writer]] = {
        Format.PNG: lambda: PngWriter(out),
        Format.COCO: lambda: CocoWriter(out, classes, context=context),
        Format.REPORT: lambda: ReportWriter(out, classes, context=context),
        Format.OVERLAY: lambda: OverlayWriter(out, classes),
        Format.NPZ: lambda: NpzWriter(out, classes),
    }
    return [makers[entry]() for entry in parse_formats(names)]
