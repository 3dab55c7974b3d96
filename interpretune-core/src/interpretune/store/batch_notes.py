"""What a file of a store says of its batches beside their rows; it travels in the metadata of the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from interpretune.errors import StoreError

METADATA = b"interpretune"
"""Key of the notes in the metadata of an Arrow or Parquet file."""


@frozen
class Layout:
    """How the values of a batch were given where its rows do not tell.

    Attributes:
        hooks: Activation names of each per-latent field, in order; also those without an alive latent.
        numbers: Per-batch fields that were Python numbers, not tensors.
    """

    hooks: tuple[tuple[str, tuple[str, ...]], ...] = ()
    numbers: tuple[str, ...] = ()


@frozen(eq=False)
class Notes:
    """The batches of one piece, in the order of its rows.

    Attributes:
        index: Index of each batch, ``[batches]``.
        rows: Its examples.
        layout: Its layout, a position in ``layouts``.
        layouts: All that occur.
        widths: Width of the dictionary of each activation name.
    """

    index: NDArray[np.int64]
    rows: NDArray[np.int64]
    layout: NDArray[np.int64]
    layouts: tuple[Layout, ...]
    widths: Mapping[str, int] = field(factory=dict)

    @classmethod
    def of_batch(cls, index: int, rows: int, layout: Layout, widths: Mapping[str, int]) -> Notes:
        """Notes of a single batch."""
        numbers = np.array([[index], [rows], [0]], dtype=np.int64)
        return cls(numbers[0], numbers[1], numbers[2], (layout,), dict(widths))

    @classmethod
    def merge(cls, pieces: Sequence[Notes]) -> Notes:
        """Notes of pieces that are put one after the other."""
        known: dict[Layout, int] = {}
        positions = []
        for piece in pieces:
            own = np.array([known.setdefault(layout, len(known)) for layout in piece.layouts], dtype=np.int64)
            positions.append(own[piece.layout])
        return cls(
            np.concatenate([piece.index for piece in pieces]),
            np.concatenate([piece.rows for piece in pieces]),
            np.concatenate(positions),
            tuple(known),
            merge_widths(pieces),
        )

    def to_json(self) -> bytes:
        """As it stands in a file."""
        content = {
            "batches": self.index.tolist(),
            "rows": self.rows.tolist(),
            "layout": self.layout.tolist(),
            "layouts": [{"hooks": dict(item.hooks), "numbers": item.numbers} for item in self.layouts],
            "widths": self.widths,
        }
        return json.dumps(content, separators=(",", ":")).encode("utf-8")

    @classmethod
    def of_metadata(cls, metadata: Mapping[bytes, bytes] | None) -> Notes:
        """Read it from what a file says of itself; ``ValueError`` if that is nothing."""
        text = (metadata or {}).get(METADATA)
        if text is None:
            raise ValueError("it has no notes on its batches")
        return cls.from_json(text)

    @classmethod
    def from_json(cls, text: bytes) -> Notes:
        """Read it from a file; ``ValueError`` if it is none."""
        try:
            found = json.loads(text)
            layouts = tuple(
                Layout(
                    tuple((str(name), tuple(map(str, hooks))) for name, hooks in item["hooks"].items()),
                    tuple(map(str, item["numbers"])),
                )
                for item in found["layouts"]
            )
            index, rows, layout = (
                np.array(_numbers(found[name], name), dtype=np.int64) for name in ("batches", "rows", "layout")
            )
            widths = dict(zip(found["widths"], _numbers([*found["widths"].values()], "widths", 1), strict=True))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"its notes on batches are damaged: {type(error).__name__} {error}") from error
        same = index.shape == rows.shape == layout.shape
        if not same or (rows < 1).any() or (index < 0).any() or (layout < 0).any() or (layout >= len(layouts)).any():
            raise ValueError("its notes on batches contradict each other")
        hooks = {hook for item in layouts for _, names in item.hooks for hook in names}
        if hooks - widths.keys():
            raise ValueError(f"its notes lack the width of {sorted(hooks - widths.keys())[0]}")
        return cls(index, rows, layout, layouts, widths)


def _numbers(values: object, name: str, least: int = 0) -> list[int]:
    """Whole numbers whose sum 64 bits hold."""
    if not isinstance(values, list) or not all(type(value) is int and least <= value <= 2**40 for value in values):
        raise ValueError(f"its notes on batches are damaged: {name} are no whole numbers from {least} to 2**40")
    return values


def merge_widths(pieces: Sequence[Notes]) -> dict[str, int]:
    """Width of each dictionary."""
    widths: dict[str, int] = {}
    for piece in pieces:
        for hook, width in piece.widths.items():
            if widths.setdefault(hook, width) != width:
                raise StoreError(
                    f"The dictionary of {hook} has {width} latents in one batch and {widths[hook]} in another. All "
                    "batches of a store come from the same latent models."
                )
    return widths
