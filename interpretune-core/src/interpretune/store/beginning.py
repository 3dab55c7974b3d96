"""The beginning of a run, or of its going on: whether a folder is the store of this run."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve

from interpretune.errors import StoreError
from interpretune.store.declared import describe, same_fields
from interpretune.store.disk import MANIFEST, check_nobody_writes
from interpretune.store.manifest import Manifest


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
