"""Writes results as they come: a file a batch, moved into shards now and then, sealed at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
from attrs import evolve

from interpretune.errors import StoreError
from interpretune.store.contents import Contents, batches_there, mended_contents
from interpretune.store.fields import Field, Per, check_fields, describe, same_fields
from interpretune.store.folder import (
    MANIFEST,
    TABLES,
    check_name,
    check_nobody_writes,
    hold_rank,
    holding_manifest,
    make_folders,
    remove_partials,
)
from interpretune.store.journal import ROWS_PER_SHARD, Journal
from interpretune.store.manifest import Manifest
from interpretune.store.rows import Rows
from interpretune.store.sealing import seal
from interpretune.store.store import AnalysisStore
from interpretune.store.tables import put_table
from interpretune.system.credentials import without_credentials


def begin_or_go_on(folder: Path, wanted: Manifest) -> None:
    """See that the store has the right manifest; the caller holds it.

    Raises:
        StoreError: The store is of another run.
        StoreBusyError: It is being written by another number of processes, which would do the same batches.
    """
    if not (folder / MANIFEST).exists():
        wanted.write(folder)
        return
    found = Manifest.read(folder)
    _check_same_run(found, wanted, folder)
    if found.world_size != wanted.world_size and not found.complete:
        check_nobody_writes(folder)
        evolve(found, world_size=wanted.world_size).write(folder)


def _check_same_run(found: Manifest, wanted: Manifest, folder: Path) -> None:
    remedy = "Choose another folder, or remove this one to begin anew."
    if found.key != wanted.key:
        raise StoreError(
            f"The store {folder} belongs to another run: its key is {found.key[:12]}..., and that of what is to be "
            f"written is {wanted.key[:12]}.... {remedy}"
        )
    if not same_fields(found.fields, wanted.fields):
        raise StoreError(
            f"The store {folder} has other fields: {describe(found.fields)}. To be written are: "
            f"{describe(wanted.fields)}. {remedy}"
        )
    if found.n_batches != wanted.n_batches and not (found.complete and wanted.n_batches is None):
        raise StoreError(
            f"The store {folder} is of a run of {found.n_batches} batches, and {wanted.n_batches} are to be written. "
            f"{remedy}"
        )


class StoreWriter:
    """Writes the batches of one process into a store.

    A batch is whole or absent: it is a file of its own at first, and files are moved into shards of ``rows_per_shard``
    rows. A process that is killed at any moment loses no batch that was written. As a context manager it closes at the
    end; after an error it leaves everything as it is, to go on from.

    Attributes:
        folder: The store; None in memory.
    """

    def __init__(self, contents: Contents, folder: Path | None, sink: Journal | Contents) -> None:
        """Use ``create`` or ``in_memory``."""
        self.folder = folder
        self._manifest = contents.manifest
        self._sink = sink
        self._fields = check_fields(contents.manifest.fields)
        self._rows: Rows | None = contents.rows
        self._widths = dict(contents.widths)
        self._done = set(contents.index.batch.tolist())
        self._closed = False

    @classmethod
    def create(
        cls,
        folder: str | Path,
        fields: Sequence[Field],
        about: Mapping[str, Any],
        *,
        key: str,
        n_batches: int | None,
        rank: int = 0,
        world_size: int = 1,
        rows_per_shard: int = ROWS_PER_SHARD,
    ) -> StoreWriter:
        """Begin a store, or go on with one.

        Args:
            folder: Where; new, empty, or a store of the same run. Other ranks may begin it at the same moment.
            fields: What is stored of each batch, and tables.
            about: Free JSON on what the results are of; that of the first writer is kept.
            key: Hash of all that the results depend on.
            n_batches: Batches of the whole run; None: as many as come.
            rank: Of this process; one writer for each.
            world_size: Processes that write; it may differ from that of an earlier start.
            rows_per_shard: Examples in a shard.

        Files that were damaged since they were written count as absent: their batches are not ``done``, and a warning
        names them.

        Raises:
            StoreError: The folder holds something else or cannot be written, or a field cannot be stored.
            StoreBusyError: Another process writes this rank, or a run of another number of processes is at work.
        """
        folder = Path(folder)
        if not 0 <= rank < world_size or rows_per_shard < 1:
            raise StoreError(f"There is no rank {rank} of {world_size}, or no shard of {rows_per_shard} rows.")
        check_fields(fields)
        wanted = Manifest(key=key, fields=tuple(fields), about=about, n_batches=n_batches, world_size=world_size)
        wanted.to_json()  # refuses what is no JSON before anything is written
        make_folders(folder)
        with holding_manifest(folder):
            remove_partials(folder, folder / TABLES)
            begin_or_go_on(folder, wanted)
            lock = hold_rank(folder, rank)
        try:
            contents = mended_contents(folder)
            journal = Journal(folder, rank, lock, contents.manifest, rows_per_shard)
            journal.recover()
            return cls(contents, folder, journal)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def in_memory(
        cls, fields: Sequence[Field], about: Mapping[str, Any] | None = None
    ) -> tuple[AnalysisStore, StoreWriter]:
        """A store that lives and dies with the process, and its writer; what is written can be read at once.

        What ``about`` says is without credentials, as in files: pages are made of both.

        Raises:
            StoreError: A field cannot be stored.
        """
        check_fields(fields)
        contents = Contents(Manifest(key="", fields=tuple(fields), about=without_credentials(about or {})))
        return AnalysisStore(contents), cls(contents, None, contents)

    @property
    def done(self) -> frozenset[int]:
        """Batches that are there: of all ranks when the writer was made, and its own since."""
        return frozenset(self._done)

    def missing(self) -> list[int]:
        """Batches of the run that no rank has written yet, looked up anew; none where their number is not known.

        Raises:
            StoreError: A shard is damaged.
        """
        there = self._done if self.folder is None else batches_there(self.folder)
        return sorted(set(range(self._manifest.n_batches or 0)) - there)

    def write(self, batch_idx: int, examples: Sequence[int], values: Mapping[str, Any]) -> None:
        """Write a batch; it is there when this returns.

        Args:
            batch_idx: Its index.
            examples: Positions of its examples in the analysed split, ``[n]``.
            values: By field, as ``Field`` describes them.

        Raises:
            StoreError: A value is not what was declared, the batch is there already, or it cannot be written.
        """
        self._check_open()
        limit = self._manifest.n_batches
        if type(batch_idx) is not int or batch_idx < 0 or (limit is not None and batch_idx >= limit):
            raise StoreError(
                f"There is no batch {batch_idx!r} in a run of {limit if limit is not None else 'all'} batches."
            )
        if batch_idx in self._done:
            raise StoreError(f"Batch {batch_idx} is in the store already; skip what is in `done`.")
        self._check_names(values, batch_idx)
        rows_of = self._rows or Rows.of_values(self._fields, values)
        rows, notes = rows_of.encode(batch_idx, examples, values)
        for hook, width in notes.widths.items():
            if self._widths.get(hook, width) != width:
                raise StoreError(
                    f"The dictionary of {hook} has {width} latents in batch {batch_idx} and had {self._widths[hook]} "
                    "before. All batches of a store come from the same latent models."
                )
        self._sink.add(rows, notes)
        self._rows = rows_of
        self._widths |= notes.widths
        self._done.add(batch_idx)
        if isinstance(self._sink, Journal):
            self._sink.roll_if_due()

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table of the whole run, in place of one of that name; also into a sealed store.

        Raises:
            StoreError: The name is none, or it cannot be written.
        """
        check_name(name, "a table")
        if not isinstance(table, pa.Table):
            raise StoreError(f"The table {name} must be a pyarrow.Table, and is a {type(table).__name__}.")
        if isinstance(self._sink, Contents):
            self._sink.tables[name] = table
        else:
            assert self.folder is not None
            put_table(self.folder, name, table)

    def close(self) -> None:
        """Move what was written into shards and let others write this rank. Closing twice does nothing.

        Raises:
            StoreError: A shard cannot be written; the batches stay readable.
        """
        if self._closed:
            return
        self._closed = True
        if isinstance(self._sink, Journal):
            try:
                self._sink.roll()
            finally:
                self._sink.release()

    def seal(self) -> AnalysisStore:
        """Close, and mark the store as complete, with hashes of all its files.

        Raises:
            StoreError: Batches are missing, or ranks do not fit together.
            StoreBusyError: Another rank has written its last batch and not closed yet; it can seal after closing.
        """
        self.close()
        if isinstance(self._sink, Contents):
            if not self._sink.manifest.complete:
                self._sink.manifest = evolve(self._sink.manifest, complete=True, n_batches=len(self._done))
            return AnalysisStore(self._sink)
        assert self.folder is not None
        seal(self.folder)
        return AnalysisStore.open(self.folder)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif not self._closed:
            self._closed = True
            if isinstance(self._sink, Journal):
                self._sink.release()

    def _check_open(self) -> None:
        if self._closed or self._manifest.complete:
            state = "closed" if self._closed else "complete"
            raise StoreError(f"The store {self.folder or 'in memory'} is {state}; nothing more is written to it.")

    def _check_names(self, values: Mapping[str, Any], batch_idx: int) -> None:
        wanted = [name for name, item in self._fields.items() if item.per is not Per.run]
        for name in values:
            if name not in wanted:
                if name in self._fields:
                    raise StoreError(f"{name} is a table of the whole run: write it with write_table.")
                near = get_close_matches(str(name), wanted, 1)
                hint = f"did you mean {near[0]}?" if near else f"declared are {', '.join(wanted) or 'none'}."
                raise StoreError(f"Batch {batch_idx} has a field {name!r} that the store does not declare; {hint}")
        if missing := [name for name in wanted if name not in values]:
            raise StoreError(
                f"Batch {batch_idx} lacks {', '.join(missing)}; every declared field is written each time."
            )
