"""Going on after damage: what a file lost is run again, and said."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from attrs import evolve

from interpretune.store.contents import Damage
from interpretune.store.disk import holding_manifest, remove
from interpretune.store.manifest import Manifest


def forget_damaged(folder: Path, damaged: Sequence[Damage]) -> None:
    """Take damaged shards out of an unfinished store, and warn of each damaged file.

    Journal files stay: each rank removes its own when it starts.

    Raises:
        StoreError: The manifest cannot be written, or a file not removed.
    """
    if any(item.shard is not None for item in damaged):
        with holding_manifest(folder):
            forget_shards(folder, damaged)
    for item in damaged:
        warnings.warn(f"{item}: {item.batches} will be run again.", stacklevel=4)


def forget_shards(folder: Path, damaged: Sequence[Damage]) -> None:
    """Take damaged shards out of an unfinished store that nobody else writes now.

    Raises:
        StoreError: The manifest cannot be written, or a file not removed.
    """
    shards = {item.shard for item in damaged if item.shard is not None}
    manifest = Manifest.read(folder)
    evolve(manifest, shards=tuple(entry for entry in manifest.shards if entry not in shards)).write(folder)
    for entry in shards:
        remove(folder / entry.file)
