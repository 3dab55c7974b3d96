"""Evidence of a question's effects: gathered where the model is, kept in the store of the effects, read from there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import attrs
import pyarrow as pa
import torch
from attrs import frozen

from interpretune.errors import AnalysisError, ConfigurationError, StoreError
from interpretune.evidence.cards import cards_of
from interpretune.evidence.chosen import top_units
from interpretune.evidence.facts import Card, Continuation, HeldOut
from interpretune.evidence.held_out import held_out_proof
from interpretune.evidence.steering import steered
from interpretune.hashing.content_hash import hash_of
from interpretune.questions.encoding import EncodedRow, encode
from interpretune.questions.question import EFFECTS, Question
from interpretune.questions.result import Effects
from interpretune.questions.sources import read_rows
from interpretune.store.store import AnalysisStore

PARTS: Mapping[str, Any] = {
    "held_out": HeldOut,
    "cards": tuple[Card, ...],
    "steering": tuple[Continuation, ...],
}
"""What evidence consists of, each a table of the store."""


@frozen
class Evidence:
    """What is known of the answer of a question beyond its effects.

    Attributes:
        held_out: Proof on held-out rows; None where there is none.
        cards: Of the top units, largest mean size of effects first.
        steering: Prompts continued.
    """

    held_out: HeldOut | None = None
    cards: tuple[Card, ...] = ()
    steering: tuple[Continuation, ...] = ()

    @classmethod
    def open(cls, folder: str | Path) -> Evidence:
        """Read the evidence that lies in the store of effects; parts that were not gathered are None or empty.

        Raises:
            StoreError: The folder is no store, or its evidence is damaged or of other effects.
        """
        return cls.of(AnalysisStore.open(folder))

    @classmethod
    def of(cls, store: AnalysisStore) -> Evidence:
        """The same of a store that is open, such as ``effects.store``."""
        tables = store.tables
        return cls(**{part: _read(store, part, tables[table]) for part in PARTS if (table := _table(part)) in tables})


def evidence_of(
    effects: Effects,
    *,
    held_out: Any = None,
    answers: Any = "answers",
    correct: Any = "correct",
    top: int = 5,
    cards: int = 10,
    steer: int = 4,
    new_tokens: int = 12,
    seed: int = 0,
) -> Evidence:
    """Gather what convinces of effects: proof on held-out rows, cards of the top units, steered continuations.

    What was gathered before with the same settings is taken from the store of the effects, where each part is written
    when it is whole.

    Args:
        effects: What ``effects`` returned in this process: it knows the model and the question.
        held_out: Rows that are none of the question's, as ``effects`` takes them; None: no proof.
        answers: Texts for all held-out rows, or the name of the column that has those of each row.
        correct: The correct answer of held-out rows, likewise.
        top: How many units are changed together, on held-out rows and in continuations.
        cards: How many units get cards.
        steer: How many rows are continued, the first held-out ones, or of the question where there are none.
        new_tokens: Most tokens of a continuation.
        seed: Of the other units that are drawn for control.

    Returns:
        The evidence, also kept in ``effects.store``.

    Raises:
        AnalysisError: The effects were not asked in this process, or are not of changed units.
        ConfigurationError: A number is out of range.
        DataError: Held-out rows cannot be read, are rows of the question, or have no two answers.
        StoreError: The store cannot be written.
    """
    question = effects.asked
    if question is None or effects.question["method"] not in EFFECTS:
        raise AnalysisError(
            f"{effects!r} were not asked in this process, so that their model is unknown. Ask again with the same "
            "store: what is there is not computed anew."
            if question is None
            else "Evidence is of effects of changed units; these go straight to the logits. Ask it.effects."
        )
    for name, number in (("top", top), ("cards", cards), ("steer", steer), ("new_tokens", new_tokens)):
        least = 0 if name in ("cards", "steer") else 1
        if type(number) is not int or number < least:
            raise ConfigurationError(f"{name} is {number!r}; it must be a whole number, and at least {least}.")
    rows = _rows(question, held_out, answers, correct)
    units = top_units(question, effects, max(top, cards))
    continued = (question.rows if rows is None else rows)[:steer]
    jobs: dict[str, tuple[list[Any], Callable[[], Any]]] = {}
    if units and rows is not None:
        jobs["held_out"] = [rows, top, seed], lambda: held_out_proof(question, effects, rows, units[:top], seed)
    if units and cards:
        jobs["cards"] = [cards], lambda: cards_of(question, effects, units[:cards])
    if units and continued:
        jobs["steering"] = [continued, top, new_tokens], lambda: steered(question, continued, units[:top], new_tokens)
    there = _there(effects.store)
    with question.held(), torch.no_grad():
        for part, (settings, gather) in jobs.items():
            key = "" if effects.store.folder is None else _key(question, settings)
            if not key or there.get(part) != key:
                _write(effects.store, part, key, gather())
    found = Evidence.of(effects.store)
    return Evidence(**{part: getattr(found, part) for part in jobs})


def _rows(question: Question, held_out: Any, answers: Any, correct: Any) -> Sequence[EncodedRow] | None:
    if held_out is None:
        return None
    given = read_rows(held_out, answers=answers, correct=correct)
    return encode(given, question.tokenizer, most_tokens=question.most_tokens) or None


def _key(question: Question, settings: Sequence[Any]) -> str:
    told = [
        [[row.tokens, row.corrupted, row.answers, row.correct, dict(row.spans)] for row in item]
        if isinstance(item, (list, tuple))
        else item
        for item in settings
    ]
    return hash_of([question.key, told], "Evidence")


# -------------------------------------------------------------------------------------------------------------- tables


def _table(part: str) -> str:
    return f"evidence_{part}"


def _there(store: AnalysisStore) -> dict[str, str]:
    """Keys of the parts that the store has, by name; what is damaged is written anew."""
    try:
        tables = store.tables
        return {part: _entry(tables[_table(part)])["key"] for part in PARTS if _table(part) in tables}
    except (StoreError, ValueError, KeyError):
        return {}


def _write(store: AnalysisStore, part: str, key: str, facts: Any) -> None:
    told = json.dumps(_plain(facts), allow_nan=False)
    entry = {"effects": store.manifest.key, "key": key, "facts": told}
    store.add_table(_table(part), pa.Table.from_pylist([entry]))


def _read(store: AnalysisStore, part: str, table: pa.Table) -> Any:
    where = f"The evidence of {store}, table {_table(part)},"
    remedy = "Gather it again with evidence_of."
    try:
        entry = _entry(table)
        facts = _typed(PARTS[part], json.loads(entry["facts"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{where} cannot be read: {type(error).__name__}: {error}. {remedy}") from error
    if entry["effects"] != store.manifest.key:
        raise StoreError(f"{where} is of other effects. {remedy}")
    return facts


def _entry(table: pa.Table) -> dict[str, str]:
    [entry] = table.to_pylist()
    return {name: str(entry[name]) for name in ("effects", "key", "facts")}


def _plain(facts: Any) -> Any:
    """Facts as JSON; NaN becomes null."""
    if attrs.has(type(facts)):
        return {item.name: _plain(getattr(facts, item.name)) for item in attrs.fields(type(facts))}
    if isinstance(facts, (list, tuple)):
        return [_plain(item) for item in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts


def _typed(kind: Any, value: Any) -> Any:
    """The same back.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(kind, type) and attrs.has(kind):
        items = attrs.fields(attrs.resolve_types(kind))
        if not isinstance(value, dict) or {*value} != {item.name for item in items}:
            raise ValueError(f"a {kind.__name__} is expected")
        return kind(**{item.name: _typed(item.type, value[item.name]) for item in items})
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"a list is expected instead of {value!r}")
        return tuple(_typed(get_args(kind)[0], item) for item in value)
    if kind is float:
        value = math.nan if value is None else value
        if type(value) not in (int, float):
            raise ValueError(f"a number is expected instead of {value!r}")
        return float(value)
    if kind in (int, str) and type(value) is not kind:
        raise ValueError(f"a {kind.__name__} is expected instead of {value!r}")
    return value
