"""Rows by hub id, from a stand-in for the hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pytest

import interpretune as it
from interpretune.questions import read_rows
from interpretune.session.question_rows import read_question_rows
from tests.sharing.local_hub import LocalHub, Repository, local_hub

CARD = """---
configs:
- config_name: easy
  default: true
  data_files:
  - {split: train, path: easy/train.jsonl}
  - {split: validation, path: easy/validation.jsonl}
- config_name: hard
  data_files:
  - {split: test, path: hard/test.jsonl}
---
"""
PATHS = ("easy/train", "easy/validation", "hard/test")


def row_of(path: str) -> it.PromptRow:
    return it.PromptRow(f"The {path} capital of France is", (" Paris", " Rome"), 1)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with local_hub() as hub:
        for module, names in (
            (huggingface_hub.constants, {"HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path)}),
            (datasets.config, {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": False}),
            (datasets.config, {"HF_DATASETS_CACHE": tmp_path / "cache", "HF_MODULES_CACHE": tmp_path / "modules"}),
        ):
            for name, value in names.items():
                monkeypatch.setattr(module, name, value)
        files = {
            f"{path}.jsonl": json.dumps({"prompt": row.prompt, "answers": row.answers, "correct": row.correct})
            for path in PATHS
            for row in (row_of(path),)
        }
        hub.repositories["tasks/capitals"] = repository = Repository()
        repository.commit({name: text.encode() for name, text in {"README.md": CARD, **files}.items()})
        yield hub


def test_rows_of_a_hub_id_by_split_and_subset(hub: LocalHub) -> None:
    assert read_rows("tasks/capitals", split="train") == [row_of("easy/train")]
    assert read_rows("tasks/capitals/hard") == [row_of("hard/test")]
    splits = read_question_rows(it.ITDataModuleConfig(rows="tasks/capitals"))
    assert splits == {name: [row_of(f"easy/{name}")] for name in ("train", "validation")}
    with pytest.raises(it.DataError, match=r"tasks/capitals has the splits \['train', 'validation'\], not 'dev'"):
        read_rows("tasks/capitals", split="dev")
    with pytest.raises(it.DataError, match=r"with the subset 'none': .*Available: \['easy', 'hard'\]"):
        read_rows("tasks/capitals/none")
    with pytest.raises(it.DataError, match="'tasks/none' is neither a file nor a folder here, .*; as 'tasks/none': "):
        read_rows("tasks/none")
