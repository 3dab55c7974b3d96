"""``interpretune tasks``: the tasks that are offered, or rows of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interpretune.errors import InterpretuneError
from interpretune.questions import PromptRow
from interpretune.system.entry_points import unreadable
from interpretune.tasks import OfferedTask, find_task, offered_tasks
from interpretune.tasks.finding import GROUP

WIDTH = 60
"""Characters of the longest line in a cell."""


def listed_tasks() -> list[dict[str, Any]]:
    """Every task: name, distribution, version, sentence, first held-out row, and what is wrong, for JSON.

    A task of another package is imported and asked for its rows; what it raises is its ``state``.
    """
    rows = [_listed(offer) for offer in offered_tasks().values()]
    rows += [
        {**_empty("?", item.distribution, item.version), "state": f"broken: {item.reason}"}
        for item in unreadable(GROUP)
    ]
    return rows


def _empty(name: str, distribution: str, version: str) -> dict[str, Any]:
    return {"name": name, "about": "", "example": None, "distribution": distribution, "version": version}


def _listed(offer: OfferedTask) -> dict[str, Any]:
    told: dict[str, Any] = {**_empty(offer.name, offer.distribution, offer.version), "state": "ready"}
    try:
        task = offer.load()
        told["about"] = task.about
        if task.remote:  # a list downloads nothing
            told["state"] = "rows are downloaded"
        else:
            [told["example"]] = map(row_as_dict, task.held_out(1))
    except InterpretuneError as error:
        told["state"] = f"broken: {error}"
    return told


def shown_rows(name: str, n: int, seed: int) -> list[dict[str, Any]]:
    """The first held-out rows of a task.

    Raises:
        TaskError: There is no such task, or it cannot be loaded.
        DataError: It has fewer rows, or they cannot be made.
    """
    return [row_as_dict(row) for row in find_task(name).held_out(n, seed)]


def row_as_dict(row: PromptRow) -> dict[str, Any]:
    """A row for JSON; spans as first character and the one after the last."""
    return {
        "prompt": row.prompt,
        "answers": list(row.answers),
        "correct": row.correct,
        "corrupted": row.corrupted,
        "spans": {name: span if isinstance(span, str) else list(span) for name, span in row.spans.items()},
    }


def tasks_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The list as a table; the example with its correct answer."""
    return [
        {
            "name": row["name"],
            "about": row["about"] if row["state"] == "ready" else f"{row['about']} ({row['state']})".strip(),
            "example": _example(row["example"]) if row["example"] else "",
            "from": f"{row['distribution']} {row['version']}",
        }
        for row in rows
    ]


def rows_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of a task as a table."""
    return [
        {
            "prompt": str(row["prompt"]),
            "correct": repr(row["answers"][row["correct"]]),
            "other answers": ", ".join(repr(item) for i, item in enumerate(row["answers"]) if i != row["correct"]),
            "corrupted": str(row["corrupted"] or "-"),
        }
        for row in rows
    ]


def _example(row: Mapping[str, Any]) -> str:
    prompt = str(row["prompt"])
    others = [item for i, item in enumerate(row["answers"]) if i != row["correct"]]
    end = prompt if len(prompt) <= 2 * WIDTH else f"...{prompt[3 - 2 * WIDTH :]}"
    return f"{end} -> {row['answers'][row['correct']]!r} (not {', '.join(map(repr, others))})"
