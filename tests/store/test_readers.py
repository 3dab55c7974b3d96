"""Other programs open the shards and find the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lazy_loader
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from tests.store.synthetic import N_BATCHES, examples_of, sealed, values_of

duckdb, polars = map(lazy_loader.load, ("duckdb", "polars"))


def with_pyarrow(folder: Path) -> list[dict[str, Any]]:
    return pyarrow.dataset.dataset(folder / "shards").to_table().to_pylist()


def with_pyarrow_file_by_file(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("shards/*.parquet")) for row in pq.read_table(path).to_pylist()]


def with_datasets(folder: Path) -> list[dict[str, Any]]:
    files = str(folder / "shards" / "*.parquet")
    return list(load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache")))


def with_polars(folder: Path) -> list[dict[str, Any]]:
    return polars.read_parquet(folder / "shards" / "*.parquet").to_dicts()


def with_duckdb(folder: Path) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        found = connection.sql(f"select * from '{folder}/shards/*.parquet'")
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


@pytest.mark.parametrize("read", [with_pyarrow, with_pyarrow_file_by_file, with_datasets, with_polars, with_duckdb])
def test_a_reader_without_interpretune_finds_the_values(
    tmp_path: Path, read: Callable[[Path], list[dict[str, Any]]]
) -> None:
    folder = tmp_path / "store"
    sealed(folder)
    rows = {row["example"]: row for row in read(folder)}
    assert sorted(rows) == [example for batch in range(N_BATCHES) for example in examples_of(batch)]
    for batch in range(N_BATCHES):
        expected = values_of(batch)
        for place, example in enumerate(examples_of(batch)):
            row = rows[example]
            assert row["batch"] == batch
            assert row["logit_diffs"] == expected["logit_diffs"][place].item()
            assert list(row["tokens"]) == expected["tokens"][place].tolist()
            assert row["prompts"] == expected["prompts"][place]
            assert list(row["logits"]) == expected["logits"][place].tolist()
            assert row["loss"] == expected["loss"].item()
            entries = {(entry["hook"], entry["latent"]): entry for entry in row["latents"]}
            assert len(entries) == len(row["latents"])
            for name in ("activations", "effects"):
                kept = {key: entry[name] for key, entry in entries.items() if entry[name]}
                assert kept == {
                    (hook, latent): values.dense()[place, latent].item()
                    for hook, values in expected[name].items()
                    for latent in values.dense()[place].nonzero().flatten().tolist()
                }
