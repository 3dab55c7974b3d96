"""The end of a run: one manifest for the shards of all ranks, and whether all files are as it lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attrs import evolve

from interpretune.errors import StoreError
from interpretune.store.contents import Contents
from interpretune.store.folder import TABLES, hold_rank, holding_manifest, read_refused, remove
from interpretune.store.journal import Journal, journal_files, shard_files
from interpretune.store.manifest import Manifest
from interpretune.store.shards import CheckedFile, ShardPiece


def seal(folder: Path) -> None:
    """Mark a store as complete; ``StoreError`` if batches are missing, a rank writes, or ranks do not fit together."""
    with holding_manifest(folder):
        manifest = Manifest.read(folder)
        if manifest.complete:
            return
        move_journals(folder)
        manifest = Manifest.read(folder)
        shards = [ShardPiece(folder, entry) for entry in manifest.shards]
        there = Contents(manifest, shards).index.batch.tolist()  # refuses ranks that do not fit together
        if manifest.n_batches is not None and len(there) < manifest.n_batches:
            missing = sorted(set(range(manifest.n_batches)) - set(there))
            shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise StoreError(
                f"The store {folder} cannot be sealed: {len(missing)} of {manifest.n_batches} batches are missing "
                f"({shown}). Run the analysis again; it computes those."
            )
        listed = {Path(entry.file).name for entry in manifest.shards}
        for path in shard_files(folder):
            if path.name not in listed:  # of a rank without a journal, hence of no writer that is at work
                remove(path)
        complete = evolve(manifest, complete=True, n_batches=len(there), next_shard=0)
        check_files(folder, complete, shards)
        complete.write(folder)


def check_files(folder: Path, manifest: Manifest, shards: Sequence[ShardPiece]) -> None:
    """Compare all files of a store, but the journal, with its manifest."""
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


def move_journals(folder: Path) -> None:
    """Move what ranks of an earlier start have left into shards of theirs.

    Raises:
        StoreError: A file cannot be written.
        StoreBusyError: A rank is at work.
    """
    with holding_manifest(folder):  # so that no rank that starts finds its lock taken for a moment
        manifest = Manifest.read(folder)
        for rank in sorted({_rank_of(path) for path in journal_files(folder)}):
            lock = hold_rank(folder, rank)
            try:
                journal = Journal(folder, rank, lock, manifest)
                journal.recover()
                journal.roll()
            finally:
                lock.release()


def _rank_of(path: Path) -> int:
    try:
        return int(path.name.partition("-")[0].removeprefix("r"))
    except ValueError as error:
        raise read_refused(path, ValueError("its name is not that of a journal file")) from error
