"""How much memory the values of a Parquet file take, known before any of them is read."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MOST_TEXT = 256 << 20
"""Bytes of text in a group of rows, beyond which it must not be more than ``MOST_TIMES`` what is read from the disk."""
MOST_TIMES = 100
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of a value by its type in the file."""


def unfolded_bytes(metadata: pq.FileMetaData) -> int:
    """Bytes of all values, as the footer counts them; texts count as they lie in the file, see ``unfold_text``."""
    total = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            width = _WIDTHS.get(column.physical_type, 0)
            total += max(column.num_values * width, column.total_uncompressed_size)
    return total


def unfold_text(array: pa.Array, read: int) -> pa.Array:
    """Texts, or lists of texts, that were read as codes.

    Args:
        array: The column.
        read: Bytes of the group of rows in the file.

    Raises:
        ValueError: A few texts are repeated so often that they would fill the memory.
    """
    if pa.types.is_list(array.type):
        flat = unfold_text(array.flatten(), read)
        offsets = array.offsets.to_numpy()
        kind = pa.list_(pa.field("element", flat.type))
        return pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), flat, type=kind)
    if not pa.types.is_dictionary(array.type):
        return array
    if array.null_count:
        raise ValueError("a text is missing")
    lengths = pc.binary_length(array.dictionary).to_numpy().astype(np.int64)
    total = int(np.bincount(array.indices.to_numpy(), minlength=len(lengths)) @ lengths) if len(array) else 0
    if total > max(MOST_TEXT, MOST_TIMES * read):
        raise ValueError(f"its texts unfold from {read:,} to {total:,} bytes, as a decompression bomb does")
    return array.cast(array.type.value_type)
