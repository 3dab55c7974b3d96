"""``interpretune adapters``: what is installed, without importing any of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interpretune.plugins.discovery import InstalledAdapter, registered_adapters, unreadable_registrations


def listed_adapters() -> list[dict[str, Any]]:
    """A row for each registered adapter, and for each registration that cannot be read."""
    registered = sorted(registered_adapters(), key=lambda item: item.name)
    owners = {
        item.name: sorted({other.distribution for other in registered if other.name == item.name})
        for item in registered
    }
    rows = [_row(item, owners) for item in registered]
    return rows + [
        {
            "name": "?",
            "level": "?",
            "distribution": item.distribution,
            "version": item.version,
            "requires": [],
            "state": f"broken: {item.reason}",
        }
        for item in unreadable_registrations()
    ]


def _row(item: InstalledAdapter, owners: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What the list of adapters says of one of them, by the distributions that register each name."""
    about = item.read_declaration()
    missing = [name for name in about.requires if name not in owners] if about else []
    if len(owners[item.name]) > 1:
        state = f"broken: registered by {' and '.join(owners[item.name])}"
    elif about is None:
        state = item.why_unreadable()
    elif not about.speaks_current_contract:
        state = f"contract {about.contract} not spoken"
    elif unmet := item.versions_unmet():
        state = "; ".join(f"needs {each.name}{each.wanted}, {each.installed} is installed" for each in unmet)
    else:
        state = f"missing {', '.join(missing)}" if missing else "ready"
    return {
        "name": item.name,
        "level": str(about.level) if about else "?",
        "distribution": item.distribution,
        "version": item.version,
        "requires": list(about.requires) if about else [],
        "state": state,
    }


def adapters_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table for a terminal."""
    from tabulate import tabulate

    shown = [{**row, "requires": ", ".join(row["requires"]) or "-"} for row in rows]
    return tabulate(shown, headers="keys", tablefmt="simple")
