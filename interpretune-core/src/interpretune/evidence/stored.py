"""Evidence of a question's effects as it lies in their store: written there, and read without a model."""

from __future__ import annotations

import contextlib
import json
import math
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import attrs
import pyarrow as pa
from attrs import frozen

from interpretune.errors import StoreError
from interpretune.evidence.facts import Card, Continuation, HeldOut
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
        return cls(**read_parts(store, PARTS))


def read_parts(store: AnalysisStore, parts: Iterable[str]) -> dict[str, Any]:
    """Those of some parts of the evidence that the store has, by name."""
    tables = store.tables
    return {part: _read(store, part, tables[table]) for part in parts if (table := _table(part)) in tables}


def keys_of(store: AnalysisStore) -> dict[str, str]:
    """Keys of the parts that the store has, by name; what is damaged is written anew."""
    found = {}
    for part in PARTS:
        with contextlib.suppress(StoreError):
            if read_parts(store, [part]):
                found[part] = _entry(store.tables[_table(part)])["key"]
    return found


def write_part(store: AnalysisStore, part: str, key: str, facts: Any) -> None:
    """Put a part of the evidence, and the key of its settings, into the store of the effects."""
    told = json.dumps(_plain(facts), allow_nan=False)
    entry = {"effects": store.manifest.key, "key": key, "facts": told}
    store.add_table(_table(part), pa.Table.from_pylist([entry]))


def _plain(facts: Any) -> Any:
    """Facts as JSON; NaN becomes null."""
    if attrs.has(type(facts)):
        return {item.name: _plain(getattr(facts, item.name)) for item in attrs.fields(type(facts))}
    if isinstance(facts, (list, tuple)):
        return [_plain(item) for item in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts


def _table(part: str) -> str:
    return f"evidence_{part}"


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
    if get_origin(kind) is types.UnionType:
        return None if value is None else _typed(get_args(kind)[0], value)
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"one of {get_args(kind)} is expected instead of {value!r}")
    if kind is float:
        value = math.nan if value is None else value
        if type(value) not in (int, float):
            raise ValueError(f"a number is expected instead of {value!r}")
        return float(value)
    if kind in (int, str) and type(value) is not kind:
        raise ValueError(f"a {kind.__name__} is expected instead of {value!r}")
    return value
