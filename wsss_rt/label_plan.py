"""What a labelling run is about, checked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from wsss_rt.assets import find_model
from wsss_rt.errors import UsageError
from wsss_rt.io.sources import SourceImage, find_images
from wsss_rt.model_card import read_card, refuse_kind
from wsss_rt.options import LabelOptions
from wsss_rt.refine import open_refiner
from wsss_rt.tags import load_tags

if TYPE_CHECKING:
    from wsss_rt.model_card import ModelCard
    from wsss_rt.tags import TagTable


@dataclass(frozen=True)
class Job:
    """What to label, and how the run behaves.

    Attributes:
        inputs: as ``find_images`` takes them.
        out: the output folder.
        model: a file or the name of an embedded model; None takes the newest embedded one.
        tags: what ``load_tags`` reads; None predicts.
        formats: names of writers. The masks themselves are always written: resuming and the other formats
            stand on them.
        options: how to label.
        resume: go on where an earlier run ended; False overwrites it.
        limit: label at most this many images, the first in order.
        max_errors: stop when more images than this have failed.
        command: the words of the command line, for run.json.
        chosen: names of the options that the user set.
    """

    inputs: Sequence[str]
    out: Path
    model: str | Path | None = None
    tags: str | Path | None = None
    formats: Sequence[str] = ("png", "coco", "report")
    options: LabelOptions = field(default_factory=LabelOptions)
    resume: bool = True
    limit: int | None = None
    max_errors: int | None = None
    command: Sequence[str] = ()
    chosen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """A job whose images, model and tags were found and fit each other; nothing is written yet.

    Attributes:
        sources: the images in order.
        notes: what was left out of the inputs.
        model: path of the artifact.
        card: its card.
        options: resolved against the card.
        tags: the table, or None.
        untagged: how many images the table doesn't know.
    """

    sources: Sequence[SourceImage]
    notes: tuple[str, ...]
    model: Path
    card: ModelCard
    options: LabelOptions
    tags: TagTable | None
    untagged: int

    @property
    def tag_mode(self) -> str:
        """``given``, ``folders`` or ``predicted``."""
        if self.tags is None:
            return "predicted"
        return "folders" if self.tags.from_folders else "given"

    def given_tags(self, source: SourceImage) -> list[str] | None:
        """Tags of an image in class order; None where they are predicted or missing."""
        given = None if self.tags is None else self.tags.lookup(source.relative)
        return None if given is None else sorted(set(given), key=self.card.classes.index)


def make_plan(job: Job, *, stdin: IO[bytes] | IO[str] | None = None) -> Plan:
    """Find everything that a job names, and refuse what cannot work.

    Raises:
        UsageError: no image, an unknown class, model or refiner, or tags for none of the images.
        WsssError: the model is missing or damaged.
    """
    open_refiner(job.options)
    found = find_images(list(job.inputs), exclude=job.out, stdin=stdin)
    sources: Sequence[SourceImage] = found if job.limit is None else found[: job.limit]
    model = find_model(job.model)
    card = read_card(model)
    refuse_kind(card, str(model))
    tags = None if job.tags is None else load_tags(job.tags, classes=card.classes)
    # looked up now, because an ambiguous or unknown tag should not end the run after an hour
    untagged = 0 if tags is None else sum(tags.lookup(source.relative) is None for source in sources)
    if tags is not None and untagged == len(sources):
        entry = f", the first entry is {tags.keys()[0]}" if len(tags) else ""
        raise UsageError(
            f"none of the {len(sources)} images has tags in {tags.source}",
            why=f"the first image is {sources[0].relative}{entry}",
            fix="name the images by their path below the input folder, by file name, or by stem",
            code="no_tags",
        )
    return Plan(sources, found.notes, model, card, job.options.resolved(card), tags, untagged)
