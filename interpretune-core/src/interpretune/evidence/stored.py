"""Evidence of a question's effects as it lies in their store: written there, and read without a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import types
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import attrs
import numpy as np
import pyarrow as pa
from attrs import frozen

from interpretune.errors import StoreError
from interpretune.evidence.facts import Card, Continuation, HeldOut, PromptTokens
from interpretune.store.store import AnalysisStore

PARTS: Mapping[str, Any] = {
    "held_out": HeldOut,
    "cards": tuple[Card, ...],
    "steering": tuple[Continuation, ...],
    "prompts": PromptTokens,
}
"""What evidence consists of, each a table of the store."""
FORM = 3
"""Of these facts, written beside them: those of another form are refused, and gathered anew."""
LARGEST = 1e30
"""Numbers beyond it are of no model."""


@frozen
class Evidence:
    """What is known of the answer of a question beyond its effects.

    Attributes:
        held_out: Proof on held-out rows; None where there is none.
        cards: Of the top units, largest mean size of effects first.
        steering: Prompts continued.
        prompts: Tokens of the prompts of the question, where there are cards of latents.
    """

    held_out: HeldOut | None = None
    cards: tuple[Card, ...] = ()
    steering: tuple[Continuation, ...] = ()
    prompts: PromptTokens | None = None

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

    def _repr_html_(self) -> str:
        return self._shown("evidence_html")

    def __str__(self) -> str:
        return self._shown("evidence_text")

    def _shown(self, how: str) -> str:
        page = import_module("interpretune.reports.page.html_page")  # by its name: pages are above
        shown: str = getattr(page, how)(self)
        return shown


def read_parts(store: AnalysisStore, parts: Iterable[str]) -> dict[str, Any]:
    """Those of some parts of the evidence that the store has, by name."""
    found = {part: read_facts(store, _table(part), PARTS[part]) for part in parts}
    return {part: facts for part, facts in found.items() if facts is not None}


def keys_of(store: AnalysisStore) -> dict[str, str]:
    """Keys of the parts that the store has, by name; what is damaged is written anew."""
    found = {part: key_of_facts(store, _table(part), PARTS[part]) for part in PARTS}
    return {part: key for part, key in found.items() if key is not None}


def write_part(store: AnalysisStore, part: str, key: str, facts: Any) -> None:
    """Put a part of the evidence, and the key of its settings, into the store of the effects."""
    write_facts(store, _table(part), key, facts)


def _table(part: str) -> str:
    return f"evidence_{part}"


def write_facts(store: AnalysisStore, table: str, key: str, facts: Any) -> None:
    """Put facts, and the key of their settings, into a table of the store of the effects that they are of."""
    told = json.dumps(_plain(facts), allow_nan=False)
    entry = {"form": FORM, "effects": store.manifest.key, "key": key, "facts": told}
    store.add_table(table, pa.Table.from_pylist([entry]))


def read_facts(store: AnalysisStore, table: str, kind: Any) -> Any:
    """Facts of a kind in a table of the store of the effects that they are of; None where there is no such table.

    Raises:
        StoreError: They are damaged, of another kind, or of other effects.
    """
    tables = store.tables
    return _read(store, table, tables[table], kind) if table in tables else None


def key_of_facts(store: AnalysisStore, table: str, kind: Any) -> str | None:
    """The key of their settings; None where there are none that can be read."""
    with contextlib.suppress(StoreError):
        if read_facts(store, table, kind) is not None:
            return _entry(store.tables[table])["key"]
    return None


def digest_of_facts(store: AnalysisStore, table: str, kind: Any) -> str | None:
    """Hash of the facts themselves, whatever their settings were; None where there are none that can be read."""
    if key_of_facts(store, table, kind) is None:
        return None
    return hashlib.sha256(_entry(store.tables[table])["facts"].encode()).hexdigest()


def _plain(facts: Any) -> Any:
    """Facts as JSON; NaN becomes null."""
    if isinstance(facts, np.ndarray):
        return _plain(facts.tolist())
    if attrs.has(type(facts)):
        return {item.name: _plain(getattr(facts, item.name)) for item in attrs.fields(type(facts))}
    if isinstance(facts, (list, tuple)):
        return [_plain(item) for item in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts


def _read(store: AnalysisStore, name: str, table: pa.Table, kind: Any) -> Any:
    where = f"The evidence in {store.folder or 'a store in memory'}, table {name},"
    remedy = "Gather it again."
    try:
        entry = _entry(table)
        facts = _typed(kind, json.loads(entry["facts"]))
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise StoreError(f"{where} cannot be read: {error}. {remedy}") from error
    if entry["effects"] != store.manifest.key:
        raise StoreError(f"{where} is of other effects. {remedy}")
    return facts


def _entry(table: pa.Table) -> dict[str, str]:
    if table.num_rows != 1 or not {"form", "effects", "key", "facts"} <= {*table.column_names}:
        raise ValueError("the table has no form, effects, key and facts in one row")
    [entry] = table.to_pylist()
    if entry["form"] != FORM:
        raise ValueError(f"it is written in the form {str(entry['form'])[:20]}, and this version reads the form {FORM}")
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
    if get_origin(kind) is np.ndarray:
        return np.array(value, dtype=np.float64)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"a list is expected instead of {value!s:.80}")
        return tuple(_typed(get_args(kind)[0], item) for item in value)
    if get_origin(kind) is types.UnionType:
        return None if value is None else _typed(get_args(kind)[0], value)
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"one of {get_args(kind)} is expected instead of {value!s:.80}")
    if kind is float:
        value = math.nan if value is None else value
        if type(value) not in (int, float):
            raise ValueError(f"a number is expected instead of {value!s:.80}")
    elif kind in (int, str, bool) and type(value) is not kind:
        raise ValueError(f"a {kind.__name__} is expected instead of {value!s:.80}")
    if kind in (int, float) and abs(value) > LARGEST:
        raise ValueError(f"no model gives a number such as {str(value)[:20]}")
    return float(value) if kind is float else value
