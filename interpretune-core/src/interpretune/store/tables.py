"""Tables of a whole run: a Parquet file each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from attrs import evolve

from interpretune.store.folder import TABLES, check_name, holding_manifest, read_refused, whole_file
from interpretune.store.manifest import Manifest
from interpretune.store.manifest_parts import TableEntry
from interpretune.store.shards import UNREADABLE, CheckedFile, HashedFile, unfolded_bytes


def write_table(folder: Path, name: str, table: pa.Table) -> TableEntry:
    """Write a table's file."""
    file = f"{TABLES}/{name}.parquet"
    with whole_file(folder / file, durable=True) as path, path.open("wb") as out:
        hashed = HashedFile(out)
        pq.write_table(table, hashed, compression="zstd", write_page_checksum=True)
    return TableEntry(file, table.num_rows, hashed.sha256())


def put_table(folder: Path, name: str, table: pa.Table) -> None:
    """Write a table into a store, and into its manifest."""
    with holding_manifest(folder):
        entry = write_table(folder, name, table)
        manifest = Manifest.read(folder)
        others = (item for item in manifest.tables if item.file != entry.file)
        evolve(manifest, tables=tuple(sorted((*others, entry), key=attrgetter("file")))).write(folder)


def note(folder: Path, about: Mapping[str, Any]) -> None:
    """Say more of a store in its manifest, in the place of what stands under the same names."""
    with holding_manifest(folder):
        manifest = Manifest.read(folder)
        evolve(manifest, about={**manifest.about, **about}).write(folder)


def read_tables(folder: Path, manifest: Manifest) -> dict[str, pa.Table]:
    """Tables of the whole run, by name."""
    tables = {}
    for entry in manifest.tables:
        name = check_name(Path(entry.file).stem, "a table")
        with _table_file(folder / entry.file, entry) as file:
            tables[name] = file.read()
    return tables


def unfolded_tables(folder: Path, manifest: Manifest) -> int:
    """About how many bytes the tables take in memory, as their footers say."""
    total = 0
    for entry in manifest.tables:
        with _table_file(folder / entry.file, entry) as file:
            total += unfolded_bytes(file.metadata)
    return total


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
