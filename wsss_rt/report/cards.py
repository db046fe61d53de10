"""The gallery: one figure per image."""

from __future__ import annotations

import base64
from pathlib import Path

from wsss_rt.classes import ClassSet
from wsss_rt.report.collect import Card
from wsss_rt.report.markup import color, link, shown_path, small_share, text

FLAG_MEANINGS = {
    "no_class_found": "no class reached its threshold: the mask is background only",
    "no_tags_given": "the tags name no class for this image: the mask is background only",
    "tag_without_evidence": "a given tag that the model does not see: perhaps a wrong tag",
    "all_background": "tags, but not one pixel above the background threshold",
}


def figure(card: Card, classes: ClassSet, *, rank: int, sampled: bool, source: str) -> str:
    """One image: its preview, its name, and what its mask holds.

    Args:
        card: the image.
        classes: the model's.
        rank: position in the order of confidence.
        sampled: whether it belongs to the random sample.
        source: what the page loads as the preview, see :func:`source_of`.
    """
    names = classes.mask_names()
    name = shown_path(card.name)
    confidence = "" if card.confidence is None else f"{card.confidence:.2f}"
    mask = link(card.files["mask"])
    chips = [
        f'<span><span class="swatch" style="--swatch:{color(value, wide=classes.wide)}"></span>'
        f"{text(names.get(value, value))} {text(small_share(share))}</span>"
        for value, share in card.shares
    ] or ["<span>background only</span>"]
    drawn = {names.get(value) for value, _ in card.shares}
    chips += [f"<span>{text(tag)}: no pixel</span>" for tag in card.tags if tag not in drawn]
    chips += [
        f'<span class="flag" title="{text(FLAG_MEANINGS.get(flag, ""))}">'
        f"{text(flag.replace('_', ' '))}</span>"
        for flag in card.flags
    ]
    if "overlay" in card.files:
        chips.append(f'<a href="{link(card.files["overlay"])}">overlay</a>')
    values = " ".join(str(value) for value, _ in card.shares)
    return (
        f'<figure class="card" data-rank="{rank}" data-name="{name}" data-classes="{values}" '
        f'data-flags="{text(" ".join(card.flags))}"{" data-sample" if sampled else ""}>'
        f'<button type="button" aria-label="enlarge {name}"><img src="{source}" alt="{name} and its mask" '
        f"{'' if source.startswith('data:') else 'loading=lazy '}></button>"
        f'<figcaption><div class="title"><a href="{mask}" title="open the mask">{name}</a>'
        f'<span title="confidence">{confidence}</span></div>'
        f'<div class="chips">{"".join(chips)}</div></figcaption></figure>'
    )


def source_of(card: Card, out: Path | None) -> str:
    """Where the page takes a preview from: its own bytes, where ``out`` says so and the file is there."""
    relative = card.files.get("thumbnail", "")
    if out is not None and relative:
        try:
            data = (out / relative).read_bytes()
        except FileNotFoundError:
            # an image of an earlier run without a report: the page says that its preview is missing
            return link(relative)
        return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
    return link(relative)
