"""Whether rows that were read can be what a writer wrote; nothing follows an index before this has looked at it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from interpretune.store.latents import HOOK, LATENT, LATENTS
from interpretune.store.rows import BATCH, EXAMPLE


def check_rows(
    rows: pa.RecordBatch, index: NDArray[np.int64], counts: NDArray[np.int64], widths: Mapping[str, int]
) -> None:
    """Hold rows, or some of their columns, to the notes of their file.

    Args:
        rows: The rows.
        index: Index of each of their batches, ``[batches]``.
        counts: Rows of each.
        widths: Width of the dictionary of each activation name.

    Raises:
        ValueError: Batches are not those of the notes, a position is negative, a value is missing, or an entry names a
            latent that its dictionary does not have.
    """
    if rows.num_rows != int(counts.sum()):
        raise ValueError(f"it has {rows.num_rows} rows where its notes say {int(counts.sum())}")
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if column.null_count or (name != LATENTS and _lacks_elements(column)):
            raise ValueError(f"{name} lacks values")
    if BATCH in rows.schema.names and not np.array_equal(rows.column(BATCH).to_numpy(), np.repeat(index, counts)):
        raise ValueError("its rows are of other batches than its notes say")
    examples = rows.column(EXAMPLE).to_numpy()
    if len(examples) and examples.min() < 0:
        raise ValueError(f"it has the example {examples.min()}, and positions are 0 or more")
    if LATENTS in rows.schema.names:
        _check_entries(rows.column(LATENTS).flatten(), widths)


def _lacks_elements(column: pa.Array) -> bool:
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
        if column.null_count:
            return True
    return False


def _check_entries(entries: pa.StructArray, widths: Mapping[str, int]) -> None:
    for name in (HOOK, LATENT):
        if entries.null_count or entries.field(name).null_count:
            raise ValueError(f"entries of {LATENTS} lack their {name}")
    hooks = entries.field(HOOK)
    known = [widths.get(hook, -1) for hook in hooks.dictionary.to_pylist()]
    if not len(hooks):
        return
    codes = hooks.indices.to_numpy()
    if codes.min() < 0 or codes.max() >= len(known):
        raise ValueError(f"an entry of {LATENTS} has no activation name")
    width = np.array(known, dtype=np.int64)[codes]
    latents = entries.field(LATENT).to_numpy()
    wrong = np.flatnonzero((latents < 0) | (latents >= width))
    if len(wrong):
        at = wrong[0]
        hook = hooks.dictionary[int(codes[at])].as_py()
        have = f"has {width[at]} latents" if width[at] >= 0 else "is not in its notes"
        raise ValueError(f"an entry names latent {latents[at]} of {hook}, which {have}")
