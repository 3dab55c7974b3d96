"""The end of a run: one manifest for the shards of all ranks, and tables of the whole run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from attrs import evolve

from interpretune.analysis.store.contents import Contents
from interpretune.analysis.store.disk import TABLES, hold_rank, holding_manifest, read_refused, whole_file
from interpretune.analysis.store.journal import Journal
from interpretune.analysis.store.manifest import Manifest, ShardEntry, TableEntry
from interpretune.analysis.store.pieces import ShardPiece, journal_files, shard_files
from interpretune.cache_folder import file_sha256
from interpretune.errors import StoreError


def seal(folder: Path) -> None:
    """Mark a store as complete.

    Raises:
        StoreError: Batches are missing, a rank is still writing, or ranks do not fit together.
    """
    with holding_manifest(folder):
        manifest = Manifest.read(folder)
        if manifest.complete:
            return
        move_journals(folder)
        shards = [ShardPiece(path) for path in shard_files(folder)]
        there = Contents(manifest, shards).index.batch.tolist()  # refuses ranks that do not fit together
        if manifest.n_batches is not None and len(there) < manifest.n_batches:
            missing = sorted(set(range(manifest.n_batches)) - set(there))
            shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise StoreError(
                f"The store {folder} cannot be sealed: {len(missing)} of {manifest.n_batches} batches are missing "
                f"({shown}). Run the analysis again; it computes those."
            )
        evolve(
            manifest,
            complete=True,
            n_batches=len(there),
            shards=tuple(
                ShardEntry(
                    shard.path.relative_to(folder).as_posix(),
                    int(shard.notes.rows.sum()),
                    tuple(sorted(shard.notes.index.tolist())),
                    file_sha256(shard.path),
                )
                for shard in shards
            ),
            tables=_tables(folder),
        ).write(folder)


def put_table(folder: Path, name: str, table: pa.Table) -> None:
    """Write a table into a store, and into its manifest where that is complete.

    Raises:
        StoreError: It cannot be written.
    """
    with holding_manifest(folder):
        with whole_file(folder / TABLES / f"{name}.parquet", durable=True) as path:
            pq.write_table(table, path, compression="zstd")
        manifest = Manifest.read(folder)
        if manifest.complete:
            evolve(manifest, tables=_tables(folder)).write(folder)


def move_journals(folder: Path) -> None:
    """Move what ranks of an earlier start have left into shards of theirs."""
    sealed = {index for path in shard_files(folder) for index in ShardPiece(path).notes.index.tolist()}
    for rank in sorted({_rank_of(path) for path in journal_files(folder)}):
        lock = hold_rank(folder, rank)
        try:
            journal = Journal(folder, rank, lock)
            journal.recover(sealed)
            journal.roll()
        finally:
            lock.release()


def _rank_of(path: Path) -> int:
    try:
        return int(path.name.partition("-")[0].removeprefix("r"))
    except ValueError as error:
        raise read_refused(path, ValueError("its name is not that of a journal file")) from error


def _tables(folder: Path) -> tuple[TableEntry, ...]:
    return tuple(
        TableEntry(path.relative_to(folder).as_posix(), pq.read_metadata(path).num_rows, file_sha256(path))
        for path in sorted((folder / TABLES).glob("*.parquet"))
    )
