"""Where a writer puts the rows of a batch: the journal of a folder, or memory."""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa

from interpretune.store.contents import Contents
from interpretune.store.notes import Notes
from interpretune.store.pieces import MemoryPiece


class Sink(Protocol):
    """Takes the rows of batches."""

    def add(self, rows: pa.RecordBatch, notes: Notes) -> None:
        """Keep a batch, whole or not at all."""

    def roll_if_due(self) -> None:
        """Make one piece of many batches, where there are enough."""

    def roll(self) -> None:
        """Make one piece of many batches."""

    def release(self) -> None:
        """Let others write."""


class MemorySink:
    """Adds batches to a store in memory, where there is nothing to tidy up."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents

    def add(self, rows: pa.RecordBatch, notes: Notes) -> None:
        """Keep a batch."""
        self._contents.add(MemoryPiece(f"batch {notes.index[0]}", rows, notes))

    def roll_if_due(self) -> None:
        """Nothing."""

    def roll(self) -> None:
        """Nothing."""

    def release(self) -> None:
        """Nothing."""
