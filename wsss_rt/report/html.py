"""The report page: one HTML file that opens without a network, the same bytes for the same run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt import __version__
from wsss_rt.io.atomic import write_atomic
from wsss_rt.io.decode import to_upright
from wsss_rt.report.cards import FLAG_MEANINGS, figure, source_of
from wsss_rt.report.collect import BINS, Collected, collect
from wsss_rt.report.draw import encode_jpeg, thumbnail
from wsss_rt.report.markup import color, images, option, percent, shown_path, text

if TYPE_CHECKING:
    from wsss_rt.classes import ClassSet
    from wsss_rt.results import Result

REPORT_FILE = "report.html"
THUMBNAILS = "report"
# previews inside the page, so that the file alone still shows something; the others are files beside it
EMBEDDED_WORST, EMBEDDED_SAMPLE = 40, 20
_THUMBNAIL_QUALITY = 80

_MARKER = re.compile(r"\{\{(\w+)\}\}")


class ReportWriter:
    """``report.html``, and previews under ``report/``.

    Args:
        out: output folder.
        classes: the model's classes.
        context: fields of run.json.
    """

    name = "report"
    keys: tuple[str, ...] = ("thumbnail",)
    needs: frozenset[str] = frozenset({"image"})

    def __init__(self, out: Path, classes: ClassSet, *, context: Mapping[str, Any]) -> None:
        self._out, self._classes, self._context = out, classes, context

    def add(self, result: Result) -> dict[str, str]:
        """Write the preview of one image."""
        if result.mask is None or result.image is None:
            raise ValueError(f"{result.relative} comes without its mask or its pixels")
        picture = thumbnail(result.image, to_upright(result.mask, result.orientation))
        relative = f"{THUMBNAILS}/{result.mask_name.removesuffix('.png')}.jpg"
        write_atomic(self._out / relative, encode_jpeg(picture, quality=_THUMBNAIL_QUALITY))
        return {"thumbnail": relative}

    def finish(self, records: Iterable[dict[str, Any]]) -> list[Path]:
        """Write the page from the records, the masks and the previews."""
        found = collect(records, self._out, wide=self._classes.wide)
        path = self._out / REPORT_FILE
        write_atomic(path, render(found, self._classes, out=self._out, context=self._context).encode("utf-8"))
        return [path]


def render(found: Collected, classes: ClassSet, *, out: Path, context: Mapping[str, Any]) -> str:
    """The page.

    Args:
        found: what there is to show.
        classes: the model's classes.
        out: where the previews lie.
        context: fields of run.json; whatever is missing is left out.
    """
    cards = {card.name: card for card in [*found.worst, *found.sample]}
    ordered = sorted(cards.values(), key=lambda card: (card.rank, card.name))
    sampled = {card.name for card in found.sample}
    embedded = {card.name for card in [*found.worst[:EMBEDDED_WORST], *found.sample[:EMBEDDED_SAMPLE]]}
    everything = len(ordered) == found.labelled
    names = classes.mask_names()
    values = sorted({value for card in ordered for value, _ in card.shares})
    parts = {
        "title": "wsss-rt report",
        "heading": "Pseudo-label report",
        "lead": _lead(context),
        "tiles": _tiles(found, classes.ignore),
        "facts": _facts(found, context),
        "histogram": _histogram(found),
        "failures": _failures(found),
        "classes": _class_table(found, classes),
        "class_options": "".join(option(str(value), names.get(value, str(value))) for value in values),
        "flag_options": "".join(option(flag, flag.replace("_", " ")) for flag in sorted(found.flags)),
        "sample_option": "" if everything else '<option value="sample">random sample only</option>',
        "gallery_note": _gallery_note(found, len(ordered), everything),
        "cards": "\n".join(
            figure(
                card,
                classes,
                rank=rank,
                sampled=card.name in sampled,
                source=source_of(card, out if card.name in embedded else None),
            )
            for rank, card in enumerate(ordered)
        ),
        "footer": _footer(context),
        "style": _asset("style.css"),
        "script": _asset("script.js"),
    }
    return _MARKER.sub(lambda match: parts[match[1]], _asset("page.html"))


def _lead(context: Mapping[str, Any]) -> str:
    model = context.get("model") or {}
    engine = context.get("engine") or {}
    pieces = []
    if model:
        pieces.append(f"{model.get('method', 'model')} · {os.path.basename(str(model.get('path', '')))}")
    if engine:
        pieces.append(
            " · ".join(str(engine[key]) for key in ("backend", "device", "precision") if key in engine)
        )
    return text(" · ".join(piece.strip(" ·") for piece in pieces))


def _tiles(found: Collected, ignore: int) -> str:
    mean = f"{found.confidence_sum / found.confidences:.2f}" if found.confidences else "–"
    ignored, total = int(found.pixels[ignore]), int(found.pixels.sum())
    tiles = [
        (f"{found.labelled:,}", "images labelled", ""),
        (f"{found.failed:,}", "failed", "bad" if found.failed else ""),
        (f"{found.flagged:,}", "flagged for review", ""),
        (mean, "mean confidence", ""),
        (percent(int(found.pixels[0]), total), "of pixels background", ""),
        (percent(ignored, total), "of pixels ignored", ""),
    ]
    return "".join(
        f'<li class="{kind}"><b>{value}</b>{label}</li>' if kind else f"<li><b>{value}</b>{label}</li>"
        for value, label, kind in tiles
    )


# what a card's sections may say in one line, and how it is called there
_HEADLINES = {
    "data": "", "images_seen": "images seen:", "seed": "seed", "map": "tag mAP", "tag_f1": "tag F1",
}  # fmt: skip


def _facts(found: Collected, context: Mapping[str, Any]) -> str:
    identity, model = context.get("identity") or {}, context.get("model") or {}
    thresholds = context.get("thresholds") or {}
    background = thresholds.get("background") or {}
    rows: list[tuple[str, str]] = []
    if model.get("weights_sha256"):
        rows.append(("Model", f"<code>{text(model['weights_sha256'][:16])}</code>"))
    for key, title in (("training", "Trained on"), ("quality", "Measured quality")):
        if model.get(key):
            rows.append((title, text(_headline(model[key]))))
    sources = found.tag_sources
    tags = ", ".join(f"{source} for {images(count)}" for source, count in sorted(sources.items()))
    if tags:
        source = (context.get("config") or {}).get("tags")
        rows.append(("Tags", text(tags + (f" ({os.path.basename(str(source))})" if source else ""))))
    if "value" in background:
        origin = f"from the {background.get('from', 'command')}"
        rows.append(("Background threshold", f"{text(background['value'])} <small>{text(origin)}</small>"))
    if sources.get("predicted") and thresholds.get("tags"):
        rows.append(("Tag thresholds", f"<small>from {text(thresholds['tags'].get('from', ''))}</small>"))
    if thresholds.get("model_card_provenance"):
        rows.append(("Chosen by", text(thresholds["model_card_provenance"])))
    if identity.get("ignore_band"):
        low, high = identity["ignore_band"]
        rows.append(("Ignore band", f"{text(low)} to {text(high)}"))
    if identity.get("scales"):
        flipped = ", each also mirrored" if identity.get("flip") else ""
        rows.append(("Scales", text(", ".join(map(str, identity["scales"])) + flipped)))
    if identity:
        rows.append(("Refinement", text(identity.get("refine", "none"))))
    for flag, count in sorted(found.flags.items()):
        meaning = FLAG_MEANINGS.get(flag, "")
        rows.append((f"Flag: {flag.replace('_', ' ')}", f"{count:,} <small>{text(meaning)}</small>"))
    for note, count in sorted(found.notes.items(), key=lambda entry: (-entry[1], entry[0]))[:5]:
        rows.append(("Note", f"{text(note)} <small>({images(count)})</small>"))
    return "".join(f"<dt>{text(title)}</dt><dd>{value}</dd>" for title, value in rows)


def _histogram(found: Collected) -> str:
    if not found.confidences:
        return '<p class="note">No image was labelled.</p>'
    peak = max(1, int(found.histogram.max()))
    bars = "".join(
        f'<i style="--part:{count / peak:.4f}" title="{index / BINS:.2f} to {(index + 1) / BINS:.2f}: '
        f'{images(int(count))}"></i>'
        for index, count in enumerate(found.histogram)
    )
    return (
        f'<div class="histogram">{bars}</div>'
        '<div class="axis"><span>0</span><span>0.5</span><span>1</span></div>'
        '<p class="note">Images by confidence: the mean margin between the best and the second best score '
        "of a pixel. It ranks images for review; it is no probability that a mask is right.</p>"
    )


def _failures(found: Collected) -> str:
    if not found.failed:
        return ""
    codes = ", ".join(f"{count:,} {code}" for code, count in sorted(found.failure_codes.items()))
    rows = "".join(
        f"<tr><td><code>{shown_path(name)}</code></td><td>{text(code)}</td><td>{text(message)}</td></tr>"
        for name, code, message in found.failures
    )
    more = found.failed - len(found.failures)
    rest = f'<p class="note">and {more:,} more, see manifest.jsonl</p>' if more else ""
    return (
        f'<section class="panel failures"><h2>{images(found.failed)} failed</h2>'
        f'<p class="note">{text(codes)}</p><div class="scroll"><table class="text">'
        "<thead><tr><th>Image</th><th>Class</th><th>What happened</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{rest}</section>"
    )


def _class_table(found: Collected, classes: ClassSet) -> str:
    total = int(found.pixels.sum())
    shares = [int(found.pixels[value]) / total if total else 0.0 for value in range(1, len(classes) + 1)]
    peak = max([*shares, 1e-12])
    rows = []
    for index, name in enumerate(classes.names):
        tagged, drawn = found.tagged[name], found.drawn[index + 1]
        score = f"{found.score_sums.get(name, 0.0) / tagged:.2f}" if tagged else "–"
        share = shares[index]
        rows.append(
            f'<tr style="--swatch:{color(index + 1, wide=classes.wide)};--part:{share / peak:.4f}">'
            f'<td><span class="swatch"></span>{text(name)}</td><td>{tagged:,}</td><td>{drawn:,}</td>'
            f'<td>{score}</td><td class="share"><div class="track"><i></i>'
            f"<span>{share:.2%}</span></div></td></tr>"
        )
    return (
        '<div class="scroll"><table><thead><tr><th>Class</th><th>Images tagged</th>'
        "<th>Images with pixels</th><th>Mean probability</th><th>Share of all pixels</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _gallery_note(found: Collected, shown: int, everything: bool) -> str:
    if not found.labelled:
        return "No image was labelled."
    legend = "Left the image, right its mask; hatched pixels are ignored."
    if everything:
        return f"All {images(found.labelled)}. {legend}"
    return (
        f"{images(shown)} of {found.labelled:,}: the {len(found.worst):,} least confident and a random "
        f"sample of {len(found.sample)}; manifest.jsonl lists all. {legend}"
    )


def _footer(context: Mapping[str, Any]) -> str:
    formats = (context.get("config") or {}).get("formats") or ()
    links = [("masks/", "masks"), ("manifest.jsonl", "manifest.jsonl"), ("run.json", "run.json")]
    if "coco" in formats:
        links.insert(1, ("annotations.coco.json", "annotations.coco.json"))
    listed = " · ".join(f'<a href="{target}">{title}</a>' for target, title in links)
    return f"wsss-rt {__version__} · {listed} · versions and the time of every stage stand in run.json"


def _headline(facts: Mapping[str, Any]) -> str:
    """The plain values of a card's section; what is nested inside belongs to `wsss-rt models`."""
    measured = facts.get("validation")
    # in the card's section on training the word stands for a number of images
    named = {**facts, **measured} if isinstance(measured, Mapping) else facts
    chosen = []
    for key, label in _HEADLINES.items():
        value = named.get(key)
        if isinstance(value, float):
            chosen.append(f"{label} {value:.3g}".strip())
        elif isinstance(value, (str, int)) and not isinstance(value, bool):
            chosen.append(f"{label} {value:,}" if isinstance(value, int) else f"{label} {value}".strip())
    return "; ".join(chosen) or "see `wsss-rt models`"


def _asset(name: str) -> str:
    return (resources.files("wsss_rt.report") / name).read_text(encoding="utf-8").strip()
