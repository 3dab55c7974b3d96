"""Rows of questions in a data module: read by split, kept beside their tokens, and given back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from attrs import asdict

from interpretune.errors import DataError, TokenizationError
from interpretune.models.padding import ATTENTION_MASK
from interpretune.models.row_columns import ANSWER_TOKENS, CORRUPTED_TOKENS, ROW, SPAN
from interpretune.models.tokenizer import sanitize_input_name
from interpretune.questions import PromptRow, encode, read_rows
from interpretune.questions.sources import FILES
from interpretune.questions.splits import load_splits
from interpretune.session.labels import LABELS
from interpretune.system.offered import ROWS, addressed
from interpretune.tasks import Task, find_task, offered_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interpretune.config.datamodule import ITDataModuleConfig

TRAINING, EVALUATION = "train", "validation"
"""Splits of a task: its training rows, and its held-out rows."""


def read_question_rows(cfg: ITDataModuleConfig) -> dict[str, list[PromptRow]]:
    """The rows of each split of ``cfg.rows``, at most ``cfg.limit_rows`` of each.

    Raises:
        DataError: A source cannot be read, or holds what is no row; the error says in which split and row.
        TaskError: A task cannot be loaded.
    """
    found = {}
    for split, source in _by_split(cfg.rows).items():
        try:
            rows = _read(source, split, cfg)
        except DataError as error:
            raise DataError(f"ITDataModuleConfig.rows, split {split!r}: {error}") from error
        if not rows:
            raise DataError(f"ITDataModuleConfig.rows has no rows for the split {split!r}.")
        found[split] = rows[: cfg.limit_rows]
    if not found:
        raise DataError("ITDataModuleConfig.rows names no split. Give rows, or a mapping from split to rows.")
    return found


def _by_split(source: Any) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return {str(split): item for split, item in source.items()}
    if task := _task(source):
        return {TRAINING: task, EVALUATION: task}
    return load_splits(source) if _has_splits(source) else {EVALUATION: source}


def _read(source: Any, split: str, cfg: ITDataModuleConfig) -> list[PromptRow]:
    if task := source if isinstance(source, Task) else _task(source):
        return task.training() if split == TRAINING else task.held_out()
    if _has_splits(source):
        splits = load_splits(source)
        source = splits[split] if split in splits else dict(splits)
    return read_rows(source, answers=cfg.answers, correct=cfg.correct)


def _task(source: Any) -> Task | None:
    """The task of a name, where there is no file of that name."""
    named = isinstance(source, str) and not Path(source).expanduser().exists() and source in offered_tasks()
    return find_task(source) if named else None


def _has_splits(source: Any) -> bool:
    if not isinstance(source, str | Path):
        return False
    path = Path(source).expanduser()
    return addressed(ROWS, source) is not None or (path.suffix.lower() not in FILES and not path.is_file())


def source_in_words(source: Any) -> Any:
    """Where rows come from, without the rows."""
    if isinstance(source, Mapping):
        return {str(split): source_in_words(item) for split, item in source.items()}
    if source is None or isinstance(source, str | Path):
        return source
    return f"{len(source)} rows in memory" if isinstance(source, Sized) else type(source).__name__


def rows_fingerprint(cfg: ITDataModuleConfig) -> str:
    """SHA-256 of the rows of each split."""
    return " ".join(
        f"{split}={hashlib.sha256(' '.join(map(_written, rows)).encode()).hexdigest()}"
        for split, rows in read_question_rows(cfg).items()
    )


def encode_question_rows(
    rows: Sequence[PromptRow], tokenizer: PreTrainedTokenizerBase, limit: int | None, split: str
) -> datasets.Dataset:
    """Rows with their tokens: what a prepared split holds.

    Returns:
        Tokens and mask of the prompt; ``labels``, the index of the correct answer, -1 where there is none; tokens of
        the answers, of the corrupted prompt and of the spans where there are any; and the row itself.

    Raises:
        DataError: As ``encode``.
        TokenizationError: As ``encode``.
    """
    try:
        encoded = encode(rows, tokenizer, most_tokens=limit)
    except (DataError, TokenizationError) as error:
        raise type(error)(f"ITDataModuleConfig.rows, split {split!r}: {error}") from error
    columns: dict[str, list[Any]] = {
        "input_ids": [item.tokens.tolist() for item in encoded],
        ATTENTION_MASK: [[1] * len(item.tokens) for item in encoded],
        LABELS: [item.correct for item in encoded],
        ANSWER_TOKENS: [list(map(list, item.answers)) for item in encoded],
        ROW: [_written(item.row) for item in encoded],
    }
    if any(item.corrupted is not None for item in encoded):
        columns[CORRUPTED_TOKENS] = [None if item.corrupted is None else item.corrupted.tolist() for item in encoded]
    for name in sorted({name for item in encoded for name in item.spans}):
        columns[f"{SPAN}{name}"] = [list(item.spans[name]) if name in item.spans else None for item in encoded]
    return datasets.Dataset.from_dict(sanitize_input_name(tokenizer.model_input_names, columns))


def rows_of(dataset: Iterable[Any], split: str) -> list[PromptRow]:
    """The rows of a prepared split; ``DataError`` if it was not made of rows of a question."""
    if ROW not in getattr(dataset, "column_names", ()):
        raise DataError(
            f"The split {split!r} was prepared from text fields and labels, and keeps no rows of a question. Give "
            "ITDataModuleConfig(rows=...), with answers for all rows or by row."
        )
    found: Any = dataset
    return [PromptRow(**json.loads(text)) for text in found[ROW]]


def _written(row: PromptRow) -> str:
    """A row as JSON."""
    fields = asdict(row, recurse=False)
    try:
        return json.dumps({name: _plain(value) for name, value in fields.items()}, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{row.told} holds what cannot be kept as JSON: {error}. Use texts in chat messages."
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
