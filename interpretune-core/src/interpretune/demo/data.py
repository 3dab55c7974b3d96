"""The demo's rows, and the text on which its latent models are trained."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from interpretune.config.datamodule import ITDataModuleConfig
from interpretune.session.prompts import read_rows
from interpretune.system.cache_folder import build_once, cache_root

TEXT_FIELDS = ("premise", "hypothesis")
LABEL_FIELD = "label"
NOT_ENTAILED = 1
TRAINING_CHARACTERS = 48_000
"""Characters of text to train latent models on: as much as fits into a minute or two on two cores."""


def demo_files(data: str | None, limit: int | None, cache_dir: str | Path | None) -> dict[str, str]:
    """Rows of the demo, or of ``data``, as JSONL files by split.

    Returns:
        ``train``: text for latent models; ``validation``: rows to analyse.

    Raises:
        DataError: The data cannot be read, lacks the fields, or has labels other than 0 and 1.
    """
    if data is None:
        with as_file(files("interpretune").joinpath("tasks/rows/entailment")) as folder:
            source: Any = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
            splits = _rows(source)
    else:
        splits = _rows(data)
    analysed = splits.get("validation") or splits.get("test") or next(iter(splits.values()))
    texts = recombine(splits.get("train") or analysed, TRAINING_CHARACTERS)  # the same whatever is analysed
    contents = {"train": texts, "validation": analysed[:limit]}
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]

    def write(folder: Path) -> None:
        for split, rows in contents.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")

    folder = build_once(cache_root(cache_dir) / "demo-rows" / digest, write)
    return {split: str(folder / f"{split}.jsonl") for split in contents}


def recombine(rows: Sequence[Mapping[str, Any]], characters: int, seed: int = 0) -> list[dict[str, Any]]:
    """The rows, then new pairs of their premises and hypotheses, until there is enough text.

    A hypothesis does not follow from the premise of another row, so new pairs are labelled as not entailed.
    """
    generator = random.Random(seed)  # noqa: S311 - no secret depends on it
    made = [dict(row) for row in rows]
    seen = {tuple(row[name] for name in TEXT_FIELDS) for row in rows}
    length = sum(len(text) for pair in seen for text in pair)
    premises, hypotheses = ([row[name] for row in rows] for name in TEXT_FIELDS)
    while length < characters and len(seen) < len(set(premises)) * len(set(hypotheses)):
        pair = (generator.choice(premises), generator.choice(hypotheses))
        if pair not in seen:
            seen.add(pair)
            made.append({**dict(zip(TEXT_FIELDS, pair, strict=True)), LABEL_FIELD: NOT_ENTAILED})
            length += sum(map(len, pair))
    return made


def _rows(source: Any) -> dict[str, list[dict[str, Any]]]:
    cfg = ITDataModuleConfig(data=source, text_fields=TEXT_FIELDS, label_field=LABEL_FIELD, num_labels=2)
    columns = (*TEXT_FIELDS, LABEL_FIELD)
    return {split: [{name: row[name] for name in columns} for row in rows] for split, rows in read_rows(cfg).items()}
