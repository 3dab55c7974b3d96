"""Files of a finished store: its tables, and whether all of it is as it was sealed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from interpretune.analysis.store.disk import TABLES, check_name, read_refused
from interpretune.analysis.store.manifest import Manifest
from interpretune.analysis.store.pieces import shard_files
from interpretune.cache_folder import file_sha256


def check_hashes(folder: Path, manifest: Manifest) -> None:
    """Compare all files of a complete store with its manifest.

    Raises:
        StoreError: A file was changed, is missing, or does not belong there.
    """
    listed = {folder / entry.file: entry.sha256 for entry in manifest.shards}
    listed |= {folder / entry.file: entry.sha256 for entry in manifest.tables}
    there = {*shard_files(folder), *(folder / TABLES).glob("*.parquet")}
    for path in sorted(there - listed.keys()):
        raise read_refused(path, ValueError("the manifest does not list it"))
    for path, expected in listed.items():
        try:
            found = file_sha256(path)
        except OSError as error:
            raise read_refused(path, error) from error
        if found != expected:
            raise read_refused(path, ValueError("its content is not what the manifest lists"))


def read_tables(folder: Path) -> dict[str, pa.Table]:
    """Tables of the whole run, by name.

    Raises:
        StoreError: One is damaged.
    """
    paths = sorted((folder / TABLES).glob("*.parquet"))
    return {check_name(path.stem, "a table"): _table(path) for path in paths}


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, partitioning=None)
    except (OSError, ValueError) as error:
        raise read_refused(path, error) from error
