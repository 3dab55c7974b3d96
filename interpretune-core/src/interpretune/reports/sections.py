"""What the stacked adapters have to say of a session, as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from interpretune.plugins.contributions import ReportSection

if TYPE_CHECKING:
    from interpretune.session.module import ITModule

WIDE = 5
"""Columns of a table that fit a terminal."""


def report_sections(module: ITModule) -> list[ReportSection]:
    """What the adapters of a session tell of it (``it_report_session``), in stack order."""
    return [section for found in module.hook.it_report_session(module=module) for section in found]


def section_text(section: ReportSection) -> str:
    """A section as text: heading, table and note."""
    parts = [section.title, "=" * len(section.title), table_text(section.rows), section.note]
    return "\n".join(part for part in parts if part)


def section_data(section: ReportSection) -> dict[str, Any]:
    """A section as JSON has it: numbers that are not finite are null, and what is no number is text."""
    rows = [{str(name): _plain(value) for name, value in row.items()} for row in section.rows]
    return {"adapter": section.adapter, "title": section.title, "rows": rows, "note": section.note}


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table as text; one with many columns is turned, so that it fits a terminal."""
    shown = [{name: f"{v:.4g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows]
    names = list(dict.fromkeys(name for row in shown for name in row))
    if len(names) > WIDE:
        return tabulate([[name, *(row.get(name, "") for row in shown)] for name in names])
    return tabulate(shown, headers="keys")


def finite_or_none(value: Any) -> Any:
    """The value, or None for a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    return finite_or_none(value) if isinstance(value, (bool, int, float, type(None))) else str(value)
