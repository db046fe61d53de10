"""A benchmark against an earlier one of the same machine: what became slower, wrong, or is gone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss_rt.benchmark.report import SCHEMA_VERSION
from wsss_rt.errors import UsageError, WsssError

# what two benchmarks must share for their times to be comparable, and where it stands in a report
_SHARED = (
    ("machine", "processor"),
    ("machine", "processors"),
    ("settings", "threads"),
    ("settings", "refine"),
    ("settings", "tags"),
    ("images", "source"),
    ("images", "count"),
)


@dataclass(frozen=True)
class Change:
    """One row of both benchmarks, or of one of them.

    Attributes:
        key: what the row is, in words.
        before, now: images per second; None where there is no such row.
        disagrees: the engine's masks were right before, and are wrong now.
    """

    key: str
    before: float | None
    now: float | None
    disagrees: bool = False

    @property
    def ratio(self) -> float | None:
        """Now over before; above 1 is faster."""
        return None if self.before is None or self.now is None else self.now / self.before

    def worse(self, limit: float) -> bool:
        """Whether it is slower by more than ``limit`` (0.1 is a tenth), gone, or wrong."""
        if self.before is None:
            return False
        return self.ratio is None or self.disagrees or self.ratio < 1 - limit


def read_report(path: Path) -> dict[str, Any]:
    """An earlier report.

    Raises:
        UsageError: no such file, or no report of ours.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["schema_version"] > SCHEMA_VERSION:
            raise ValueError("it was written by a newer wsss-rt")
        for row in report["rows"]:
            if not isinstance(row["key"], str) or not row["images_per_second"] > 0:
                raise ValueError("a row without its rate")
        for table, key in _SHARED:
            report[table][key]
    except OSError as error:
        raise UsageError(f"cannot read {path}", why=error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no report of wsss-rt bench", why=str(error), fix="write one with --json FILE"
        ) from error
    return dict(report)


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Rows of two reports, side by side, in the order of the earlier one.

    Args:
        before, now: as ``Report.as_dict`` gives them. The models may differ: that may be the question.

    Raises:
        UsageError: the times mean different things, with everything that differs.
    """
    differ = [
        f"{key} was {before[table][key]}, now {now[table][key]}"
        for table, key in _SHARED
        if before[table][key] != now[table][key]
    ]
    if differ:
        raise UsageError(
            "the two benchmarks cannot be compared",
            why="; ".join(differ),
            fix="measure the earlier state again, on this machine with the same options",
            code="not_comparable",
        )
    old, new = ({row["key"]: row for row in report["rows"]} for report in (before, now))
    changes = []
    for key in dict.fromkeys((*old, *new)):
        first, second = old.get(key), new.get(key)
        changes.append(
            Change(
                key,
                None if first is None else first["images_per_second"],
                None if second is None else second["images_per_second"],
                bool(first and second and first["agrees"] and not second["agrees"]),
            )
        )
    return changes


def refuse_worse(changes: list[Change], limit: float, earlier: str) -> None:
    """End the command where something became worse.

    Args:
        changes: as :func:`compare` gives them.
        limit: see :meth:`Change.worse`.
        earlier: the earlier report's name, for the message.

    Raises:
        WsssError: code ``slower``, naming each row.
    """
    worse = [change for change in changes if change.worse(limit)]
    if not worse:
        return
    raise WsssError(
        f"{len(worse)} of {len(changes)} rows are worse than in {earlier} by more than {100 * limit:g} %",
        why="; ".join(f"{change.key}: {_verdict(change)}" for change in worse),
        code="slower",
    )


def _verdict(change: Change) -> str:
    if change.ratio is None:
        return "not measured any more"
    slower = f"{100 * (change.ratio - 1):+.1f} %"
    return f"{slower}, and its masks no longer agree" if change.disagrees else slower
