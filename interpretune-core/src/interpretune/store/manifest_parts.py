"""Parts of a manifest: each is held to its kind and bounds before anything is made of it.

``ValueError`` says what a part is and what is expected; ``StoreError`` that a file would lie elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from attrs import frozen

from interpretune.store.fields import DTYPES, Field, Per
from interpretune.store.folder import SHARDS, TABLES, check_name


@frozen
class ShardEntry:
    """A piece of the table.

    Attributes:
        file: Relative to the store, ``shards/NAME.parquet``.
        rows: Examples.
        spans: Indices of its batches, ascending where they are one process's.
        sha256: Of the file, 64 hexadecimal digits.
    """

    file: str
    rows: int
    spans: tuple[range, ...]
    sha256: str

    @classmethod
    def of(cls, file: str, rows: int, batches: Iterable[int], sha256: str) -> ShardEntry:
        """The entry of a shard with these batches."""
        return cls(file, rows, tuple(_spans(sorted(batches))), sha256)

    @property
    def n_batches(self) -> int:
        """Number of batches; nothing is counted out, as a manifest from elsewhere may say anything."""
        return sum((span.stop - span.start + span.step - 1) // span.step for span in self.spans)

    @property
    def batches(self) -> tuple[int, ...]:
        """Indices, ascending. Of an entry from elsewhere, see that ``n_batches`` is that of the file before."""
        return tuple(sorted(index for span in self.spans for index in span))


@frozen
class TableEntry:
    """A table of the whole run."""

    file: str
    rows: int
    sha256: str


def _spans(batches: Sequence[int]) -> Iterator[range]:
    """Ascending numbers as ranges: ranks take every n-th batch."""
    start = 0
    while start < len(batches):
        step = batches[start + 1] - batches[start] if start + 1 < len(batches) else 1
        stop = start + 1
        while stop < len(batches) and batches[stop] - batches[stop - 1] == step:
            stop += 1
        yield range(batches[start], batches[stop - 1] + 1, step)
        start = stop


T = TypeVar("T")
MOST = 2**63 - 1
"""The largest number of anything: positions are 64-bit integers."""
DEEPEST = 64
"""Mappings and lists inside each other in ``about``."""
_KINDS: dict[type, str] = {str: "text", bool: "true or false", list: "a list", dict: "a mapping"}
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_json(text: str) -> Any:
    """JSON as its standard has it, without NaN and Infinity."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def number(value: object, where: str, least: int = 0) -> int:
    """A whole number that 64 bits hold."""
    if type(value) is not int or not least <= value <= MOST:
        raise _wrong(where, value, f"a whole number from {least} to 2**63 - 1")
    return value


def of_kind(value: object, where: str, kind: type[T]) -> T:
    """Text, a truth value, a list or a mapping."""
    if not isinstance(value, kind):
        raise _wrong(where, value, _KINDS[kind])
    return value


def members(value: object, where: str, *names: str) -> Mapping[str, Any]:
    """A mapping with exactly these names."""
    if not isinstance(value, dict) or value.keys() != set(names):
        wanted = f"a mapping of {', '.join(names)}"
        if not isinstance(value, dict):
            raise _wrong(where, value, wanted)
        raise ValueError(f"{where} has {', '.join(map(str, value))[:80] or 'nothing'}, and {wanted} is expected")
    return value


def read_field(value: object, where: str) -> Field:
    """A declared field."""
    found = members(value, where, "name", "dtype", "per", "shape", "ragged", "about")
    name, dtype, per = (of_kind(found[part], f"{where}.{part}", str) for part in ("name", "dtype", "per"))
    if not name.isidentifier():
        raise _wrong(f"{where}.name", name, "an identifier")
    if dtype not in DTYPES:
        raise _wrong(f"{where}.dtype", dtype, f"one of {', '.join(DTYPES)}")
    if per not in {str(item) for item in Per}:
        raise _wrong(f"{where}.per", per, f"one of {', '.join(Per)}")
    axes = [
        of_kind(axis, f"{where}.shape[{i}]", str)
        for i, axis in enumerate(of_kind(found["shape"], f"{where}.shape", list))
    ]
    ragged, about = of_kind(found["ragged"], f"{where}.ragged", bool), of_kind(found["about"], f"{where}.about", str)
    return Field(name, dtype, Per(per), tuple(axes), ragged, about)


def read_shard(value: object, where: str) -> ShardEntry:
    """A shard; its batches stay spans, whatever numbers they name."""
    found = members(value, where, "file", "rows", "batches", "sha256")
    spans = []
    for i, span in enumerate(of_kind(found["batches"], f"{where}.batches", list)):
        at = f"{where}.batches[{i}]"
        if len(of_kind(span, at, list)) != 3:
            raise _wrong(at, span, "a list of start, stop and step")
        start, stop, step = (number(part, at, least) for part, least in zip(span, (0, 1, 1), strict=True))
        if stop <= start:
            raise ValueError(f"{at} is a span from {start} to {stop}, and a start below its stop is expected")
        spans.append(range(start, stop, step))
    entry = ShardEntry(
        _inside(found["file"], SHARDS, where),
        number(found["rows"], f"{where}.rows", 1),
        tuple(spans),
        _sha256(found["sha256"], where),
    )
    if not 1 <= entry.n_batches <= entry.rows:
        raise ValueError(f"{where}.batches are {entry.n_batches}, and 1 to {entry.rows}, its rows, are expected")
    return entry


def read_table(value: object, where: str) -> TableEntry:
    """A table."""
    found = members(value, where, "file", "rows", "sha256")
    return TableEntry(
        _inside(found["file"], TABLES, where), number(found["rows"], f"{where}.rows"), _sha256(found["sha256"], where)
    )


def read_about(value: Any) -> Mapping[str, Any]:
    """What a run says of itself: free but for its depth, and for what readers look up in it."""
    check_depth(of_kind(value, "about", dict))
    for i, item in enumerate(of_kind(value.get("latent_models", []), "about.latent_models", list)):
        where = f"about.latent_models[{i}]"
        of_kind(of_kind(item, where, dict).get("name"), f"{where}.name", str)
        if item.get("dashboard_url") is not None:
            of_kind(item["dashboard_url"], f"{where}.dashboard_url", str)
    return value


def check_depth(about: object) -> None:
    """Refuse what is nested so deep that going through it could fail."""
    level: list[Any] = [about]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError(f"about is nested more than {DEEPEST} deep")


def check_unlike(files: list[str]) -> None:
    """Refuse a file that is listed twice."""
    seen: set[str] = set()
    for file in files:
        if file in seen:
            raise ValueError(f"it lists {file} twice")
        seen.add(file)


def _inside(file: object, folder: str, where: str) -> str:
    """A path that a manifest may list."""
    start, _, name = of_kind(file, f"{where}.file", str).partition("/")
    if start != folder or not name.endswith(".parquet"):
        raise _wrong(f"{where}.file", file, f"a file {folder}/NAME.parquet")
    return f"{folder}/{check_name(name, 'a file of a store')}"


def _sha256(value: object, where: str) -> str:
    if not _SHA256.fullmatch(of_kind(value, f"{where}.sha256", str)):
        raise _wrong(f"{where}.sha256", value, "64 hexadecimal digits")
    return str(value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no JSON")


def _wrong(where: str, found: object, expected: str) -> ValueError:
    if isinstance(found, list):
        shown = f"a list of {len(found)}"
    elif isinstance(found, dict):
        shown = f"a mapping of {len(found)}"
    else:
        shown = repr(found)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return ValueError(f"{where} is {shown}, and {expected} is expected")
