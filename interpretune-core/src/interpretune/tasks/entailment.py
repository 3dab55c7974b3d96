"""Entailment and yes/no questions: rows that come with the package, and two data sets of the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.resources import files
from typing import Any

from interpretune.errors import DataError
from interpretune.questions import PromptRow
from interpretune.tasks.task import Part, Task
from interpretune.tasks.templates import row_of

ANSWERS = (" Yes", " No")
ENTAILMENT = "Text: {premise}\nClaim: {hypothesis}\nThe claim is supported by the text (Yes/No):"
QUESTION = "Text: {passage}\nQuestion: {question}?\nThe answer to the question is (Yes/No):"
SPLITS: Mapping[Part, str] = {"training": "train", "held_out": "validation"}


def entailed(row: Mapping[str, Any]) -> PromptRow:
    """A row of a premise, a hypothesis, and the label 0 where the hypothesis follows."""
    words = {"premise": row["premise"].strip(), "hypothesis": row["hypothesis"].strip().removesuffix(".")}
    return row_of(ENTAILMENT, words, None, ANSWERS, int(row["label"]))


def answered(row: Mapping[str, Any]) -> PromptRow:
    """A row of a passage and a question whose answer is true or false."""
    words = {"passage": row["passage"].strip(), "question": row["question"].strip().removesuffix("?")}
    return row_of(QUESTION, words, None, ANSWERS, 0 if row["answer"] else 1)


def shipped(part: Part) -> Iterator[PromptRow]:
    """Rows that come with the package."""
    file = files("interpretune").joinpath(f"tasks/rows/entailment/{SPLITS[part]}.jsonl")
    yield from (entailed(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines())


def from_hub(
    part: Part, path: str, subset: str | None, row: Callable[[Mapping[str, Any]], PromptRow]
) -> Iterator[PromptRow]:
    """Rows of a data set of the hub; ``DataError`` if it can be neither downloaded nor found in the cache."""
    import datasets

    try:
        data = datasets.load_dataset(path, subset, split=SPLITS[part])
    except Exception as error:
        load = ", ".join(repr(item) for item in (path, subset) if item is not None)
        raise DataError(
            f"The rows of {path}{'/' + subset if subset else ''} cannot be loaded: {type(error).__name__}: {error}. "
            f"Without a network, run `datasets.load_dataset({load})` where there is one and copy the cache of "
            "datasets (HF_DATASETS_CACHE), or ask the task 'entailment', whose rows come with the package."
        ) from error
    yield from map(row, data)


entailment = Task(
    "entailment", 'Whether a claim follows from a text, " Yes" or " No": 160 rows that come with the package.', shipped
)
rte = Task(
    "rte",
    'Whether a claim follows from a text, " Yes" or " No": the rows of super_glue/rte, from the hub.',
    partial(from_hub, path="super_glue", subset="rte", row=entailed),
    remote=True,
)
boolq = Task(
    "boolq",
    'A question on a text, to be answered by " Yes" or " No": the rows of boolq, from the hub.',
    partial(from_hub, path="boolq", subset=None, row=answered),
    remote=True,
)
