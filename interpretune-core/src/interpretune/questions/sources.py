"""Rows of a question from what researchers have: lists, frames, data sets, files, the hub."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from attrs import evolve, frozen

from interpretune.errors import DataError
from interpretune.questions.json_lines import json_lines, text_of_file
from interpretune.questions.offered_rows import offered_splits
from interpretune.questions.prompt_row import PromptRow, brief, is_prompt
from interpretune.questions.splits import load_splits

PROMPT, ANSWERS, CORRECT, CORRUPTED, SPANS = "prompt", "answers", "correct", "corrupted", "spans"
"""Columns of a row, unless they are called otherwise."""
FILES = (".jsonl", ".csv", ".parquet")


@frozen
class _Record:
    """One row of a source: where it is, for errors, and its fields, or a row that is made already."""

    where: str
    fields: Mapping[str, Any] | PromptRow


@frozen
class _Columns:
    """What ``read_rows`` was told: names of columns, or values."""

    prompt: str
    answers: Any
    correct: Any
    corrupted: str
    spans: str


def read_rows(
    source: Any,
    *,
    prompt: str = PROMPT,
    answers: str | Sequence[Any] = ANSWERS,
    correct: str | int | Sequence[Any] = CORRECT,
    corrupted: str = CORRUPTED,
    spans: str = SPANS,
    split: str | None = None,
) -> list[PromptRow]:
    """Make rows of a question.

    Columns for corrupted prompts, spans and the correct answer may be missing, unless they are named. Without a column,
    the first of a row's own answers is correct; where two answers or more are given for several rows at once, which of
    them is correct must be said.

    Args:
        source: A list of texts, of chats (lists of messages), of mappings or of ``PromptRow``, whose answers are
            replaced by those that are given here; a pandas or polars frame; a ``datasets.Dataset``; the path of a
            JSONL, CSV or Parquet file or of a folder saved by ``datasets``; ``name:address`` of a source that an
            installed package offers; a hub data set, with its subset behind a slash where it has one. In a CSV file,
            answers are a JSON list and spans a JSON object.
        prompt: Column of the prompts.
        answers: Column of the answers, or the answers themselves: texts, for all rows, or a list of texts a row. An
            empty list stands for no answers.
        correct: Column of the correct answers, each by its index or its text; or the index or the text itself, for all
            rows; or a list of one a row. A text is a column where there is one of that name.
        corrupted: Column of the corrupted prompts.
        spans: Column of the spans, mappings from a name to a text of the prompt or to two characters.
        split: Which split to read, where the source has several.

    Raises:
        DataError: The source cannot be read, lacks a column, or holds what is no row of a question; the error says
            which row or line.
    """
    columns = _Columns(prompt, _plain(answers), _plain(correct), corrupted, spans)
    for name, value in (("prompt", prompt), ("corrupted", corrupted), ("spans", spans)):
        if not isinstance(value, str):
            raise DataError(f"{name}=... takes the name of a column, not {brief(value)}.")
    records = list(_records(source, split, prompt))
    by_row = {name: _by_row(name, getattr(columns, name), len(records)) for name in (ANSWERS, CORRECT)}
    rows = []
    if _is_texts(columns.answers) and len(columns.answers) > 1 and len(records) > 1 and by_row[CORRECT] is None:
        _check_correct_is_told(records, columns)
    for i, record in enumerate(records):
        given = {name: values[i] for name, values in by_row.items() if values is not None}
        if isinstance(record.fields, PromptRow):
            rows.append(_with_answers(record.where, record.fields, columns, given))
        else:
            rows.append(_row(record.where, record.fields, columns, given))
    return rows


def _records(source: Any, split: str | None, prompt: str) -> Iterator[_Record]:
    if isinstance(source, str | Path):
        yield from _stored(source, split)
        return
    if isinstance(source, Mapping) and source and all(isinstance(item, datasets.Dataset) for item in source.values()):
        source = _one_split(source, split, "The data set")
    elif split is not None:
        raise DataError(f"A split is for files and data sets with splits, not for {type(source).__name__}.")
    items = _items(source)
    for i, item in enumerate(items):
        where = f"Row {i}"
        if isinstance(item, PromptRow | Mapping):
            yield _Record(where, item if isinstance(item, PromptRow) else dict(item))
        elif is_prompt(item):
            yield _Record(where, {prompt: item})
        else:
            raise DataError(
                f"{where} is {brief(item)}; give a text, chat messages, a mapping with the columns of the row, or a "
                "PromptRow."
            )


def _items(source: Any) -> Iterable[Any]:
    if hasattr(source, "to_dicts") and hasattr(source, "columns"):  # a polars frame
        items: Iterable[Any] = source.to_dicts()
        return items
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a pandas frame
        names = [str(name) for name in source.columns]
        if len({*names}) < len(names):
            raise DataError(f"The frame has columns of the same name: {names}. Rename them.")
        records: Iterable[Any] = source.set_axis(names, axis="columns").to_dict("records")
        return records
    if isinstance(source, Iterable) and not isinstance(source, Mapping | bytes):
        return source
    raise DataError(
        f"Rows cannot be read from {brief(source)}. Give a list of texts, chats, mappings or PromptRow, a pandas or "
        "polars frame, a datasets.Dataset, the path of a file, or the id of a hub data set."
    )


def _stored(source: str | Path, split: str | None) -> Iterator[_Record]:
    if (offered := offered_splits(source)) is not None:
        rows = _one_split(offered, split, str(source))
        yield from (_Record(f"{source}, row {i}", dict(fields)) for i, fields in enumerate(rows))
        return
    path = Path(source).expanduser()
    kind = path.suffix.lower()
    if kind in FILES or path.is_file():
        if split is not None:
            raise DataError(f"{path} is one file, which has no split {split!r}. Leave split out.")
        if kind == ".csv":
            yield from _csv(path)
        elif kind == ".parquet":
            yield from _parquet(path)
        else:
            yield from (_Record(f"{path}, line {number}", fields) for number, fields in json_lines(path))
        return
    rows = _one_split(load_splits(source), split, str(source))
    yield from (_Record(f"{source}, row {i}", dict(fields)) for i, fields in enumerate(rows))


def _one_split(splits: Mapping[str, datasets.Dataset], split: str | None, where: str) -> datasets.Dataset:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is None or split not in splits:
        found = [str(name) for name in splits]
        asked = "" if split is None else f", not {split!r}"
        raise DataError(
            f"{where} has the splits {found}{asked}. Choose one: interpretune.questions.read_rows(..., split=...)."
        )
    return splits[split]


def _csv(path: Path) -> Iterator[_Record]:
    reader = csv.DictReader(io.StringIO(text_of_file(path), newline=""), strict=True)
    try:
        names = list(reader.fieldnames or [])
        if not names or len({*names}) < len(names):
            raise DataError(f"{path} does not begin with a line of different names of columns: {names}.")
        rows = [(reader.line_num, dict(row)) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is no CSV: {error}.") from error
    if not rows:
        raise DataError(f"The data file {path} has no rows below its names of columns.")
    for number, row in rows:
        where = f"{path}, line {number}"
        cells = len(names) - sum(cell is None for cell in row.values()) + len(row.pop(None, []))
        if cells != len(names):
            raise DataError(
                f"{where} has {cells} cells, and the columns are {names}. Put quotation marks around a cell with a "
                "comma or a line break."
            )
        yield _Record(where, _Cells({name: cell or None for name, cell in row.items()}))


class _Cells(dict[str, Any]):
    """Cells of a CSV file, which are all texts; empty ones are None."""


def _parquet(path: Path) -> Iterator[_Record]:
    if not path.is_file():
        raise DataError(f"The data file {path} does not exist.")
    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as a Parquet file: {error}.") from error
    yield from (_Record(f"{path}, row {i}", row) for i, row in enumerate(rows))


def _by_row(name: str, value: Any, count: int) -> list[Any] | None:
    """Values that were given instead of a column, one a row; None for a column."""
    if isinstance(value, str):
        return None
    one = isinstance(value, int) if name == CORRECT else value == [] or _is_texts(value)
    values = [value] * count if one else value
    if not isinstance(values, Sequence) or isinstance(values, bytes):
        raise DataError(
            f"{name}=... is {brief(value)}; give the name of a column, "
            + ("texts, or a list of texts a row." if name == ANSWERS else "an index, a text, or a list of one a row.")
        )
    if len(values) != count:
        raise DataError(f"{name}=... has {len(values)} values for {count} rows. Give one a row.")
    return list(values)


def _check_correct_is_told(records: Sequence[_Record], columns: _Columns) -> None:
    """Refuse answers for all rows where nothing says which of them is the correct one of a row (``DataError``)."""
    if columns.correct != CORRECT or isinstance(columns.answers, str):
        return
    for record in records:
        told = record.fields.answers if isinstance(record.fields, PromptRow) else columns.correct in record.fields
        if not told:
            raise DataError(
                f"{record.where} does not say which of the answers {list(columns.answers)}, which are given for all "
                "rows, is its correct one. Say so with correct=...: a list with an index or a text for each row, one "
                "for all of them, or the name of a column."
            )


def _is_texts(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, bytes) and any(isinstance(one, str) for one in value)


def _row(where: str, fields: Mapping[str, Any], columns: _Columns, given: Mapping[str, Any]) -> PromptRow:
    answers = given[ANSWERS] if ANSWERS in given else _column(where, fields, columns.answers, "answers")
    answers = _from_cell(where, fields, columns.answers, answers, list, '["Paris", "Rome"]')
    values = {
        "prompt": _column(where, fields, columns.prompt, "prompt"),
        "answers": answers,
        "corrupted": _plain(fields.get(columns.corrupted)),
        "spans": _plain(fields.get(columns.spans)),
    }
    for name, default in (("corrupted", CORRUPTED), ("spans", SPANS)):
        column = getattr(columns, name)
        if column != default and column not in fields:
            _column(where, fields, column, name)
    spans = _from_cell(where, fields, columns.spans, values["spans"], dict, '{"subject": "the keys"}')
    if isinstance(spans, Mapping):
        spans = {name: span for name, span in spans.items() if span is not None}  # tables fill what a row has not
    values["spans"] = {} if spans is None else spans
    try:
        row = PromptRow(**values)
        return PromptRow(**values, correct=_correct(fields, columns, given, row.answers))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _with_answers(where: str, row: PromptRow, columns: _Columns, given: Mapping[str, Any]) -> PromptRow:
    """A row that is made already, with the answers that are given instead of its own."""
    answers = given.get(ANSWERS, row.answers)
    keeps = CORRECT not in given and columns.correct == CORRECT
    try:
        return evolve(
            row, answers=answers, correct=row.correct if keeps else _correct({}, columns, given, list(answers))
        )
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _column(where: str, fields: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in fields:
        raise DataError(
            f"{where} has no column {name!r}; its columns are {[str(name) for name in fields]}. "
            + (
                "Name the one of the answers with answers=..., or give the answers themselves there, in a list; [] for "
                "none."
                if what == "answers"
                else f"Rename the one of the {what}, or name it: interpretune.questions.read_rows(..., {what}=...)."
            )
        )
    return _plain(fields[name])


def _from_cell(where: str, fields: Mapping[str, Any], name: Any, value: Any, kind: type, example: str) -> Any:
    """The value of a cell of a CSV file that is written as JSON."""
    if not isinstance(fields, _Cells) or not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind):
        raise DataError(f"{where}: the cell {name!r} is {brief(value)}; write it as JSON, such as {example}.")
    return found


def _correct(fields: Mapping[str, Any], columns: _Columns, given: Mapping[str, Any], answers: Sequence[str]) -> Any:
    if CORRECT in given:
        value = _plain(given[CORRECT])
    elif columns.correct in fields:
        value = _plain(fields[columns.correct])
    elif columns.correct == CORRECT:
        return 0
    else:
        value = columns.correct
    if not isinstance(value, str):
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if value in answers:
        return answers.index(value)
    if isinstance(fields, _Cells) and value.isdecimal():
        return int(value)
    raise DataError(
        f"The correct answer {brief(value)} is neither a column ({[str(name) for name in fields]}) nor one of the "
        f"answers {list(answers)}. Write it exactly as among the answers, with its spaces, or give its index."
    )


def _plain(value: Any) -> Any:
    """A value of a table without the types of its library; None for what is missing."""
    if hasattr(value, "tolist") and not isinstance(value, str):
        value = value.tolist()
    if repr(value) in ("nan", "<NA>", "NaT"):
        return None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
