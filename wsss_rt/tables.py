"""Tables on stdout: drawn by rich on a terminal, plain columns elsewhere, for tools that read lines."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print a table.

    Args:
        title: a line above it; empty for none.
        header: names of the columns.
        rows: cells as text.
        left: how many leading columns are words; the others are numbers, aligned to the right.
    """
    if sys.stdout.isatty():
        _print_rich(title, header, rows, left)
        return
    if title:
        print(title)
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def percent(share: float) -> str:
    """A share of 0..1 in percent with two digits; a dash for nan."""
    return "-" if math.isnan(share) else f"{100 * share:.2f}"


def _print_rich(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index < left else "right")
    for row in rows:
        # Text, because a class name in brackets is no markup
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
