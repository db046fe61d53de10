"""What labelling one image gave: the mask, or the reason why there is none."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wsss_rt.errors import ImageError, WsssError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.classes import ClassSet

# the status of a record
OK, FAILED = "ok", "failed"
# of a model of more classes than an 8-bit mask holds
SCORES_KEPT = 20
TagSource = Literal["given", "predicted", "none"]


@dataclass(frozen=True)
class Failure:
    """Why an image has no mask.

    Attributes:
        code: a value of :class:`wsss_rt.errors.ImageErrorCode`.
        message: what happened, why, and what to do, in one line.
    """

    code: str
    message: str

    @classmethod
    def of(cls, error: ImageError) -> Failure:
        """From the exception of one image."""
        return cls(error.code, " ".join(str(error).split()))

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass
class Result:
    """One labelled image, or one failure.

    Attributes:
        relative: path below the input folder, forward slashes; names the image everywhere.
        classes: the model's classes.
        path: the image file; empty where an array was labelled.
        mask_name: relative path of the mask below the output's ``masks`` folder, unique in a run.
        mask: (h, w) uint8 in the file's own raster, so that it fits ``Image.open(path)``; 0 background,
            class index + 1, 255 ignore. Of a model of more than 254 classes it is uint16, and 65535 is
            ignore. None where ``error`` is set.
        png: the mask as the bytes of a PNG, see :func:`wsss_rt.formats.png.encode_mask`.
        tags: classes that were looked for.
        tag_source: ``given``, ``predicted``, or ``none`` where it never came to that.
        scores: probability of every class, 0..1.
        class_scores: per tag, mean normalised score over the pixels that it won, 0..1.
        confidence: mean margin between the best and the second best score, 0..1.
        flags: what a reviewer should look at: ``no_class_found``, ``no_tags_given``,
            ``tag_without_evidence``, ``all_background``.
        notes: what was done to the image on its way in, and whether it ran twice, or should have.
        size: (width, height) of the file's raster.
        orientation: EXIF orientation, 1..8.
        timings: milliseconds per stage.
        error: why there is no mask.
        input_sha256, mask_sha256: of the image file and of the PNG.
        input_bytes, input_mtime_ns: size and time of the image file as it was read.
        image: (H, W, 3) uint8 RGB, upright; kept on request only.
        maps: (len(tags), h, w) float32 normalised maps in the file's raster; kept on request only.
    """

    relative: str
    classes: ClassSet
    path: str = ""
    mask_name: str = ""
    mask: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    png: bytes | None = None
    tags: tuple[str, ...] = ()
    tag_source: TagSource = "none"
    scores: Mapping[str, float] = field(default_factory=dict)
    class_scores: Mapping[str, float] = field(default_factory=dict)
    confidence: float | None = None
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    orientation: int = 1
    timings: dict[str, float] = field(default_factory=dict)
    error: Failure | None = None
    input_sha256: str = ""
    mask_sha256: str = ""
    input_bytes: int | None = None
    input_mtime_ns: int | None = None
    image: NDArray[np.uint8] | None = None
    maps: NDArray[np.float32] | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a mask."""
        return self.error is None

    def record(self) -> dict[str, Any]:
        """The line of the manifest, without the files that writers add.

        With more than 254 classes it names the scores of the tags and of the ``SCORES_KEPT`` likeliest alone:
        a thousand for every image would make the manifest larger than the masks.
        """
        error = None if self.error is None else {"code": self.error.code, "message": self.error.message}
        return {
            "path": self.relative,
            "source": self.path,
            "status": OK if self.error is None else FAILED,
            "error": error,
            "tags": list(self.tags),
            "tag_source": self.tag_source,
            "scores": self._scores_kept(),
            "class_scores": dict(self.class_scores),
            "confidence": self.confidence,
            "flags": list(self.flags),
            "notes": list(self.notes),
            "size": self.size,
            "orientation": self.orientation,
            "timings": self.timings,
            "input_bytes": self.input_bytes,
            "input_mtime_ns": self.input_mtime_ns,
            "input_sha256": self.input_sha256,
            "mask_sha256": self.mask_sha256,
        }

    def _scores_kept(self) -> dict[str, float]:
        if not self.classes.wide:
            return dict(self.scores)
        likeliest = heapq.nlargest(SCORES_KEPT, self.scores, key=lambda name: self.scores[name])
        kept = {*likeliest, *self.tags}
        return {name: score for name, score in self.scores.items() if name in kept}

    def save(self, path: str | Path) -> None:
        """Write the mask as a PNG, indexed with the VOC palette where it has 8 bits; complete or not at all.

        Raises:
            WsssError: there is no mask, or it cannot be written.
        """
        from wsss_rt.io.atomic import write_atomic

        if self.png is None:
            raise WsssError(f"{self.relative} has no mask to save", why=str(self.error or ""))
        write_atomic(Path(path), self.png)

    def overlay(self, image: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The image with its mask drawn over it and a legend below, upright.

        Args:
            image: (H, W, 3) uint8 RGB, upright; None takes the kept one, or reads the file again.

        Returns:
            (h + legend, w, 3) uint8 RGB; larger images are scaled down.

        Raises:
            WsssError: there is no mask.
            ImageError: the file cannot be read any more.
        """
        from wsss_rt.io.decode import decode_image, read_bytes, to_upright
        from wsss_rt.report.draw import overlay

        if self.mask is None:
            raise WsssError(f"{self.relative} has no mask to draw", why=str(self.error or ""))
        pixels = self.image if image is None else image
        if pixels is None:
            pixels = decode_image(read_bytes(self.path), max_pixels=float("inf")).upright
        return overlay(pixels, to_upright(self.mask, self.orientation), self.classes)
