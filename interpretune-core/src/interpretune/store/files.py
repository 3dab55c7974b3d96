"""Files of a store: its tables, and whether all of it is as it was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from interpretune.store.checked_file import CheckedFile, HashedFile
from interpretune.store.disk import TABLES, check_name, read_refused, whole_file
from interpretune.store.entries import TableEntry
from interpretune.store.journal import shard_files
from interpretune.store.manifest import Manifest
from interpretune.store.pieces import UNREADABLE, ShardPiece
from interpretune.store.unfolding import unfolded_bytes


def check_files(folder: Path, manifest: Manifest, shards: Sequence[ShardPiece]) -> None:
    """Compare all files of a store, but the journal, with its manifest.

    Raises:
        StoreError: A file was changed, is missing, or does not belong there.
    """
    listed = {folder / file for file in manifest.files}
    there = {*shard_files(folder), *(folder / TABLES).glob("*.parquet")}
    for path in sorted(there - listed) if manifest.complete else ():  # else its writer is about to list it
        raise read_refused(path, ValueError("the manifest does not list it"))
    for shard in shards:
        shard.check()
    for entry in manifest.tables:
        _check(CheckedFile(folder / entry.file, entry.sha256))


def _check(file: CheckedFile) -> None:
    try:
        file.check()
    except (OSError, ValueError) as error:
        raise read_refused(file.path, error) from error


def write_table(folder: Path, name: str, table: pa.Table) -> TableEntry:
    """Write a table's file.

    Raises:
        StoreError: It cannot be written.
    """
    file = f"{TABLES}/{name}.parquet"
    with whole_file(folder / file, durable=True) as path, path.open("wb") as out:
        hashed = HashedFile(out)
        pq.write_table(table, hashed, compression="zstd", write_page_checksum=True)
    return TableEntry(file, table.num_rows, hashed.sha256())


def read_tables(folder: Path, manifest: Manifest) -> dict[str, pa.Table]:
    """Tables of the whole run, by name.

    Raises:
        StoreError: One is damaged.
    """
    return {
        check_name(Path(entry.file).stem, "a table"): _table(folder / entry.file, entry) for entry in manifest.tables
    }


def unfolded_tables(folder: Path, manifest: Manifest) -> int:
    """About how many bytes the tables take in memory, as their footers say.

    Raises:
        StoreError: One is damaged.
    """
    total = 0
    for entry in manifest.tables:
        with _table_file(folder / entry.file, entry) as file:
            total += unfolded_bytes(file.metadata)
    return total


def _table(path: Path, entry: TableEntry) -> pa.Table:
    with _table_file(path, entry) as file:
        return file.read()


@contextmanager
def _table_file(path: Path, entry: TableEntry) -> Iterator[pq.ParquetFile]:
    """The file of a table, which is that of its entry."""
    try:
        with (
            CheckedFile(path, entry.sha256).open() as opened,
            pq.ParquetFile(opened, page_checksum_verification=True) as file,
        ):
            if file.metadata.num_rows != entry.rows:
                raise ValueError(f"it has {file.metadata.num_rows} rows, and the manifest lists {entry.rows}")
            yield file
    except UNREADABLE as error:
        raise read_refused(path, error) from error
