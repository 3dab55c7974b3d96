"""Rows for the demo from data of other kinds: those to ask about, and others to prove the claim on."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from interpretune.cli.tasks import row_as_dict
from interpretune.config.datamodule import ITDataModuleConfig
from interpretune.errors import DataError
from interpretune.questions import PromptRow, read_rows
from interpretune.questions.splits import load_splits
from interpretune.session.prompts import read_rows as read_labelled
from interpretune.system.cache_folder import build_once, cache_root
from interpretune.tasks import find_task, offered_tasks
from interpretune.tasks.entailment import entailed

LABELLED = ("premise", "hypothesis", "label")
MOST_TRAINING_ROWS = 1000


def demo_rows(data: str, answers: Sequence[str] | None, cache_dir: str | Path | None) -> dict[str, str]:
    """Rows of a question as JSONL files: ``train`` to train and to rank units on, ``validation`` for the proof.

    Args:
        data: A task, a JSONL, CSV or Parquet file, a folder saved by ``datasets``, or a hub data set and its subset;
            with columns of a question, or with ``premise``, ``hypothesis`` and a ``label`` of 0 or 1.
        answers: The two answers, instead of those of the rows.
        cache_dir: Where the files go; see ``interpretune.cache_root``.

    Raises:
        DataError: The data cannot be read, lack a column, or have a single row.
    """
    splits = _splits(data, answers)
    tested = splits.get("validation") or splits.get("test") or next(iter(splits.values()))
    train = splits.get("train")
    if not train:
        if len(tested) < 2:
            raise DataError(f"{data} has {len(tested)} row; the demo ranks units on some rows and proves on others.")
        half = -(-len(tested) // 2)
        train, tested = tested[:half], tested[half:]
    contents = {"train": train[:MOST_TRAINING_ROWS], "validation": tested}
    lines = {split: "".join(_line(row) for row in rows) for split, rows in contents.items()}
    digest = hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()[:16]

    def write(folder: Path) -> None:
        for split, text in lines.items():
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")

    folder = build_once(cache_root(cache_dir) / "demo-rows" / digest, write)
    return {split: str(folder / f"{split}.jsonl") for split in lines}


def _splits(data: str, answers: Sequence[str] | None) -> dict[str, list[PromptRow]]:
    if data in offered_tasks() and not Path(data).exists():
        task = find_task(data)
        splits = {"train": task.training(), "validation": task.held_out()}
        return {split: _answered(rows, answers) for split, rows in splits.items()}
    if Path(data).suffix.lower() in (".csv", ".parquet"):
        return {"validation": _mixed(read_rows(data, **_given(answers)))}
    found = load_splits(data)
    if {*LABELLED} <= {*next(iter(found.values())).column_names}:
        cfg = ITDataModuleConfig(data=data, text_fields=LABELLED[:2], label_field=LABELLED[2], num_labels=2)
        return {
            split: _mixed(_answered([entailed(row) for row in rows if row["label"] in (0, 1)], answers))
            for split, rows in read_labelled(cfg).items()
        }
    return {split: _mixed(read_rows(rows, **_given(answers))) for split, rows in found.items()}


def _given(answers: Sequence[str] | None) -> dict[str, Any]:
    return {} if answers is None else {"answers": list(answers)}


def _answered(rows: Sequence[PromptRow], answers: Sequence[str] | None) -> list[PromptRow]:
    return [row if answers is None else evolve(row, answers=tuple(answers)) for row in rows]


def _mixed(rows: list[PromptRow]) -> list[PromptRow]:
    """Rows in an order in which neither half has those of one label."""
    return random.Random(0).sample(rows, len(rows))  # noqa: S311 - no secret depends on it


def _line(row: PromptRow) -> str:
    fields = {name: value for name, value in row_as_dict(row).items() if value or name in ("answers", "correct")}
    return json.dumps(fields) + "\n"
