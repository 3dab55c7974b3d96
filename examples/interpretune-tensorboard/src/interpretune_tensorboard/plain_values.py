"""Configurations and tables as what TensorBoard can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

SHOWN_ITEMS = 20
SHOWN_CHARACTERS = 200


def plain_values(value: Any) -> Any:
    """Mappings, lists, texts and numbers; what is None or empty in a configuration is left out.

    Objects in memory are named by their class, as what they print may be anything. Of long lists the beginning stays.
    """
    if isinstance(value, Enum):
        return plain_values(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if is_dataclass(value):
        named = {item.name: getattr(value, item.name, None) for item in fields(value)}
        return plain_values(named | getattr(value, "awaiting_composition", {}))
    if isinstance(value, Mapping):
        written = {str(name): plain_values(item) for name, item in value.items()}
        return {name: item for name, item in written.items() if item is not None and item not in ({}, [])}
    if isinstance(value, (list, tuple, Set)):
        items = [plain_values(item) for item in list(value)[:SHOWN_ITEMS]]
        return items + [f"... and {len(value) - SHOWN_ITEMS:,} more"] * (len(value) > SHOWN_ITEMS)
    return f"<{type(value).__qualname__}>"


def settings_by_path(settings: Mapping[str, Any], above: str = "") -> dict[str, bool | int | float | str]:
    """Nested settings under dotted names; a list is one text."""
    found: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping):
            found |= settings_by_path(value, f"{path}.")
        elif value is not None:
            found[path] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the columns of the first one as a table of Markdown."""
    if not rows:
        return "no rows"
    names = list(rows[0])
    lines = [[_cell(name) for name in names], ["---"] * len(names)]
    lines += [[_cell(row.get(name)) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    text = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
    return " ".join(text.replace("|", "\\|").split())
