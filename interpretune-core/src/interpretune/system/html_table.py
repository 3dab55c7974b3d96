"""Tables of notebooks: short, and with all that comes from data as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tabulate import tabulate

MOST_ROWS, MOST_LETTERS = 30, 200


def html_table(title: str, rows: Sequence[Mapping[str, Any]], most_rows: int = MOST_ROWS) -> str:
    """A title and a table of its rows as HTML; long cells are cut, and so is what follows the first rows.

    Args:
        title: Above the table.
        rows: The cells of each, by column.
        most_rows: How many are shown.
    """
    shown = [{_short(name): _short(value) for name, value in row.items()} for row in rows[:most_rows]]
    table = tabulate(shown, headers="keys", tablefmt="html", disable_numparse=True)
    more = f"<p>{len(rows) - most_rows:,} more rows</p>" if len(rows) > most_rows else ""
    return f"<p>{escape(title)}</p>\n{table}{more}"


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 3]}..."
