"""Reads JSONL files: one object a line, with the number of the line in every error."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from interpretune.errors import DataError

NO_TABLE = (ValueError, TypeError, OverflowError, AttributeError, RecursionError, pa.ArrowException)
"""Errors that building columns from rows can raise."""
DEEPEST = 32
"""Allowed nesting of lists and mappings in a row; tables of deeper rows take very long to build."""


def text_of_file(path: Path) -> str:
    """The text of a file, without the mark of the byte order that some programs begin files with.

    Raises:
        DataError: The file does not exist, or is not UTF-8 text.
    """
    if not path.is_file():
        raise DataError(f"The data file {path} does not exist.")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The data file {path} cannot be read as UTF-8 text: {error}.") from error


def json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, each with the number of its line.

    Raises:
        DataError: The file cannot be read, is empty, or has a line that is no object.
    """
    text = text_of_file(path).replace("\r\n", "\n").replace("\r", "\n")  # no other character ends a line
    lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataError(f"The data file {path} is empty. Write one JSON object a line.")
    return [(i, _json_row(line, path, i)) for i, line in lines]


def json_table(path: Path) -> datasets.Dataset:
    """A JSONL file as a table.

    Raises:
        DataError: As ``json_lines``; or a field has different kinds of values.
    """
    lines = json_lines(path)
    rows = [row for _, row in lines]
    try:
        return datasets.Dataset.from_list(rows)
    except NO_TABLE as error:
        first = bisect_left(range(len(rows)), True, key=lambda last: not _is_table(rows[: last + 1]))
        raise DataError(
            f"{path}, line {lines[first][0]} does not fit the lines before: {error}. Write the same kind of value "
            "in a field of all rows, and whole numbers below 2^63."
        ) from error


def _is_table(rows: Sequence[Mapping[str, Any]]) -> bool:
    try:
        datasets.Dataset.from_list(list(rows))
    except NO_TABLE:
        return False
    return True


def _json_row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        found = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{path} is not a JSONL file with one object a line. Line {number}: {found}.") from error
    if not isinstance(row, dict):
        raise DataError(f"{path} is not a JSONL file with one object a line. Line {number} is {_short(row)}.")
    if _is_deeper(row, DEEPEST):
        raise DataError(f"{path}, line {number} has values nested more than {DEEPEST} deep, which no table holds.")
    return row


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(item, levels - 1) for item in inner)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
