"""Values as HTML; everything that comes from outside passes through here."""

from __future__ import annotations

import html
import os
from urllib.parse import quote

from wsss_rt.io.decode import printable
from wsss_rt.report.draw import display_color


def text(value: object) -> str:
    """Escaped for HTML text and attributes; what is no UTF-8 becomes a backslash escape."""
    plain = str(value).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return html.escape(plain)


def shown_path(name: str) -> str:
    """A path for people, escaped."""
    return html.escape(printable(name))


def link(relative: str) -> str:
    """A path as the target of a link, its exact bytes percent-encoded."""
    return html.escape(quote(os.fsencode(relative)))


def option(value: str, title: str) -> str:
    """One choice of a select."""
    return f'<option value="{text(value)}">{text(title)}</option>'


def color(value: int, *, wide: bool) -> str:
    """The colour of a mask value on pictures, for CSS; ``wide`` for masks of 16 bits."""
    red, green, blue = display_color(value, wide=wide)
    return f"rgb({red} {green} {blue})"


def images(count: int) -> str:
    """A number of images, in words that agree with it."""
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def percent(part: int, total: int) -> str:
    """A share with one decimal."""
    return f"{part / total:.1%}" if total else "–"


def small_share(share: float) -> str:
    """A share without decimals, that never rounds something to nothing."""
    return "< 1%" if share < 0.01 else f"{share:.0%}"
