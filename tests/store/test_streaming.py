"""Reading holds a row group, not a store, and only the columns that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from interpretune.store import AnalysisStore, StoreWriter, shards
from interpretune.store.fields import Field, Per
from interpretune.store.values import LatentValues

FIELDS = (Field("logit_diffs"), Field("activations", per=Per.latent), Field("effects", per=Per.latent))
LATENTS = LatentValues(torch.arange(50), torch.rand(8, 50), 64)


@contextmanager
def counted() -> Iterator[pa.MemoryPool]:
    """A pool that knows the most that Arrow had allocated at once."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


def peak(run: Callable[[], Any]) -> int:
    with counted() as pool:
        run()
        return pool.max_memory()


def write(folder: Path, n_batches: int, world_size: int = 1) -> None:
    for rank in range(world_size):
        writer = StoreWriter.create(
            folder, FIELDS, {}, key="k", n_batches=n_batches, rank=rank, world_size=world_size, rows_per_shard=128
        )
        for batch in range(rank, n_batches, world_size):
            numbers = torch.full((8,), float(batch))
            values = {"logit_diffs": numbers, "activations": {"a": LATENTS}, "effects": {"a": LATENTS}}
            writer.write(batch, range(8 * batch, 8 * batch + 8), values)
        writer.close()
    writer.seal()


def go_through(batches: Iterator[Any]) -> None:
    for _ in batches:
        pass


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several row groups in each shard."""
    monkeypatch.setattr(shards, "GROUP_ROWS", 64)


@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.batches(),
        lambda store: store.record_batches(),
        lambda store: store.latents(),
    ],
)
def test_memory_does_not_follow_the_number_of_examples(
    tmp_path: Path, read: Callable[[AnalysisStore], Iterator[Any]]
) -> None:
    write(tmp_path / "few", 40)
    write(tmp_path / "many", 200)
    few, many = (AnalysisStore.open(tmp_path / name) for name in ("few", "many"))
    assert peak(lambda: go_through(read(many))) < 1.2 * peak(lambda: go_through(read(few)))


def test_row_groups_of_ranks_are_read_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 96, world_size=3)
    store = AnalysisStore.open(tmp_path)
    seen = []
    read = shards.ShardPiece.read

    def count(piece: shards.ShardPiece, group: int, *arguments: Any) -> pa.RecordBatch:
        seen.append((piece.name, group))
        return read(piece, group, *arguments)

    monkeypatch.setattr(shards.ShardPiece, "read", count)
    assert [batch["logit_diffs"].tolist() for batch in store.batches()] == [[float(i)] * 8 for i in range(96)]
    assert len(seen) == len(set(seen)) == 96 * 8 // 64


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    write(tmp_path, 40)
    store = AnalysisStore.open(tmp_path)
    whole = peak(lambda: go_through(store.batches()))
    assert peak(lambda: go_through(store.batches(["effects"]))) < 0.8 * whole
    assert peak(lambda: go_through(store.batches(["logit_diffs"]))) < 0.2 * whole
