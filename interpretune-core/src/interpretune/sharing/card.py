"""The page that a shared store shows to people: what was asked of which model, on what data, with which numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from attrs import define, field
from huggingface_hub import DatasetCardData
from numpy.typing import NDArray

from interpretune.store.columns import floats
from interpretune.store.fields import Per
from interpretune.system.credentials import text_without_credentials, without_credentials

if TYPE_CHECKING:
    import pyarrow as pa

    from interpretune.store import AnalysisStore


@define
class Numbers1D:
    """Count, mean and range of the finite numbers of one field."""

    name: str
    count: int = 0
    total: float = 0.0
    lowest: float = float("nan")
    highest: float = float("nan")

    @property
    def mean(self) -> float:
        """Their mean; NaN where there are none."""
        return self.total / self.count if self.count else float("nan")

    def add(self, values: NDArray[np.float64]) -> None:
        """Count more numbers."""
        values = values[np.isfinite(values)]
        if not len(values):
            return
        self.count += len(values)
        self.total += float(values.sum())
        self.lowest = float(np.fmin(self.lowest, values.min()))
        self.highest = float(np.fmax(self.highest, values.max()))


@define
class HookNumbers:
    """What is known of the latents of one latent model."""

    name: str
    entries: int = 0
    fields: list[Numbers1D] = field(factory=list)
    _seen: NDArray[np.int64] = field(factory=lambda: np.empty(0, np.int64))

    @property
    def latents(self) -> int:
        """How many latents have an entry."""
        return len(self._seen)

    def add(self, latents: NDArray[np.int64], columns: list[NDArray[np.float64]]) -> None:
        """Count more entries."""
        self.entries += len(latents)
        self._seen = np.union1d(self._seen, latents)
        for numbers, values in zip(self.fields, columns, strict=True):
            numbers.add(values)


@define
class Numbers:
    """Everything that a card counts."""

    fields: list[Numbers1D]
    hooks: list[HookNumbers]


def numbers_of(store: AnalysisStore) -> Numbers:
    """Read a store once for its examples and once for its latents."""
    per_example = [Numbers1D(name) for name in _plain(store, Per.example)]
    if per_example:
        for batch in store.record_batches([numbers.name for numbers in per_example]):
            for numbers in per_example:
                numbers.add(floats(batch.column(numbers.name)))
    return Numbers(per_example, _hooks(store))


def _hooks(store: AnalysisStore) -> list[HookNumbers]:
    if not any(f.per is Per.latent for f in store.fields.values()):
        return []
    names = _plain(store, Per.latent)
    hooks: dict[str, HookNumbers] = {}
    for batch in store.latents(names):
        latents = batch.column("latent").to_numpy(zero_copy_only=False).astype(np.int64)
        columns = [floats(batch.column(name)) for name in names]
        for hook, rows in by_hook(batch.column("hook")):
            numbers = hooks.setdefault(hook, HookNumbers(hook, fields=[Numbers1D(name) for name in names]))
            numbers.add(latents[rows], [values[rows] for values in columns])
    return list(hooks.values())


def by_hook(column: pa.Array) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The hooks in a column, and which rows are theirs."""
    encoded = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    for code, hook in enumerate(encoded.dictionary.to_pylist()):
        rows = codes == code
        if rows.any():
            yield hook, rows


def _plain(store: AnalysisStore, per: Per) -> list[str]:
    """Names of the fields with one number for each example or latent."""
    return [
        f.name
        for f in store.fields.values()
        if f.per is per and f.stored and f.dtype != "string" and not f.shape and not f.ragged
    ]


ROWS = 20
"""Rows of a run's table that are shown."""
LINES = 200
"""Entries of the manifest that are shown."""
WIDTH = 200
"""Characters of a value that are shown."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_OPENING = """\
## How to open it

Each row of `shards/*.parquet` is an example; the column `latents` lists what is known of each latent that is active in
it. Nothing of interpretune is needed:

```python
import datasets

rows = datasets.load_dataset("parquet", data_files="shards/*.parquet")  # or the name of this repository
```

With interpretune:

```python
from interpretune.analysis import load_store

store = load_store("...")  # this folder, archive or address
```
"""


def store_card(store: AnalysisStore, title: str = "") -> str:
    """Write the card of a store, as Markdown behind YAML metadata that ``datasets.load_dataset`` understands.

    Whatever strings the store holds are shown as text: they make no headings, links, HTML or YAML.
    """
    heading = _line(text_without_credentials(title)) or "Results of an analysis"
    metadata = DatasetCardData(
        pretty_name=heading,
        tags=["interpretune", "interpretability"],
        size_categories=[next((name for size, name in _SIZES if store.n_examples < size), "n>1M")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "shards/*.parquet"}]}],
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {escape(heading)}",
        f"{store.n_examples:,} examples in {store.n_batches:,} batches, written by interpretune."
        + ("" if store.complete else " **Not complete: the run was not finished.**"),
        "## What was asked",
        _table(("part", "value"), list(_flat(without_credentials(store.manifest.about)))[:LINES]),
        "## Fields",
        _table(
            ("name", "type", "one for each", "what it says"),
            [
                (f.name, f.dtype + "[]" * f.ragged, " x ".join((f.per, *f.shape)), text_without_credentials(f.about))
                for f in store.fields.values()
            ],
        ),
        "## Numbers",
        *_numbers(numbers_of(store)),
    ]
    for name, table in store.tables.items():
        parts += [f"### {escape(name)}", _arrow(table)]
    return "\n\n".join([*parts, _OPENING])


def escape(value: object) -> str:
    """A value as one line of Markdown text in which nothing is markup."""
    text = _line(f"{value:.6g}" if isinstance(value, float) else str(value))
    text = text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$@:^=])", r"\\\1", text)


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of nested mappings and lists, with dotted names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        for i, item in enumerate(value):
            own = item.get("name") if isinstance(item, Mapping) else None
            rest = {key: part for key, part in item.items() if key != "name"} if own else item
            yield from _flat(rest, f"{name}.{own or i}")
    elif isinstance(value, (list, tuple)):
        yield name, ", ".join(str(item) for item in value)
    else:
        yield name, value


def _numbers(numbers: Numbers) -> list[str]:
    heads = ("field", "mean", "lowest", "highest", "values")
    parts = []
    if numbers.fields:
        parts.append(_table(heads, [(n.name, n.mean, n.lowest, n.highest, f"{n.count:,}") for n in numbers.fields]))
    for hook in numbers.hooks:
        parts.append(f"### Latents at {escape(hook.name)}")
        parts.append(
            f"{hook.latents:,} latents are active in some example; {hook.entries:,} entries of an example and a latent."
        )
        rows = [(n.name, n.mean, n.lowest, n.highest, f"{n.count:,}") for n in hook.fields]
        if rows:
            parts.append(_table(heads, rows))
    return parts or ["The store has no fields of single numbers."]


def _arrow(table: pa.Table) -> str:
    shown = table.slice(0, ROWS).to_pylist()
    text = _table(table.column_names, [tuple(row.values()) for row in shown])
    return text + (f"\n\n{table.num_rows - ROWS:,} more rows." if table.num_rows > ROWS else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [[escape(cell) for cell in row] for row in (heads, *rows)]
    lines.insert(1, ["---"] * len(heads))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
