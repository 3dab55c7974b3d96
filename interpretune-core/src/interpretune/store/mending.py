"""Going on after damage: what a file lost is run again, and said."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from attrs import evolve

from interpretune.store.contents import Contents, Damage
from interpretune.store.disk import holding_manifest, remove, shard_number
from interpretune.store.manifest import Manifest


def mended_contents(folder: Path) -> Contents:
    """What a writer finds in a store: damaged shards are taken out of an unfinished one, and a warning names each file.

    Journal files stay: each rank removes its own when it starts.

    Raises:
        StoreError: The store is none, the manifest cannot be written, or a file not removed.
    """
    contents = Contents.of_folder(folder, leave_out_damaged=True)
    if any(item.shard is not None for item in contents.damaged):
        with holding_manifest(folder):  # looked at again: another rank may have mended it, and gone on, meanwhile
            contents = Contents.of_folder(folder, leave_out_damaged=True)
            forget_shards(folder, contents.damaged)
    for item in contents.damaged:
        warnings.warn(f"{item}: {item.batches} will be run again.", stacklevel=4)
    return contents


def forget_shards(folder: Path, damaged: Sequence[Damage]) -> None:
    """Take damaged shards out of an unfinished store whose manifest is held, or that nobody else knows.

    No later shard gets the number of one of them.

    Raises:
        StoreError: The manifest cannot be written, or a file not removed.
    """
    lost = {item.shard for item in damaged if item.shard is not None}
    if not lost:
        return
    manifest = Manifest.read(folder)
    kept = tuple(entry for entry in manifest.shards if entry not in lost)
    above = max(shard_number(entry.file) for entry in lost) + 1
    evolve(manifest, shards=kept, next_shard=max(manifest.next_shard, above)).write(folder)
    for entry in lost:
        remove(folder / entry.file)
