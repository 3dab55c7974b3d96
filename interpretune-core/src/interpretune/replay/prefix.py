"""Keys and values of a batch, stored from one forward, and attention of many single tokens over them.

In a causal model, a change at one token leaves all earlier tokens unchanged. So rows that change the same token of the
same example in different ways share everything that the token attends to, and only the token itself runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.inputs import Points

Slots = slice | Tensor
"""The slots of an example that a token attends to, its own last: a slice, or ids ``[n]``."""

Seen = Callable[[], Sequence[Tensor]]


@frozen(eq=False)
class LayerKeys:
    """Keys and values of one block.

    Attributes:
        keys: As attention uses them (rotated), ``[kv_heads, pos, d_head]`` for each example.
        values: ``[kv_heads, pos, d_head]`` for each example.
        slots: For each point, the slots it attends to, and its own.
        seen: Gives for each example which slots each slot attends to, its own included, ``[pos, pos]``, bool; rows that
            carry a suffix ask for it. Blocks that see the same share one function.
    """

    keys: Sequence[Tensor] | Tensor
    values: Sequence[Tensor] | Tensor
    slots: Sequence[Slots]
    seen: Seen = tuple


@frozen(eq=False)
class Prefix:
    """What a replay needs from a batch.

    Attributes:
        points: The tokens that can be rerun.
        tokens: Their ids, ``[n]``.
        position_ids: Their positions among real tokens, ``[n]``.
        layers: Keys and values, by block.
        first_slots: The slot of the batch that is the first of an example's keys, ``[batch]``; None: 0 for all.
    """

    points: Points
    tokens: Tensor
    position_ids: Tensor
    layers: Mapping[int, LayerKeys]
    first_slots: Tensor | None = None


@frozen(eq=False)
class Rows:
    """Rows of a replay: each runs the token of one point.

    Attributes:
        points: Point of each row, ascending, ``[n]``.
        segments: Runs of rows of one point: (point, first row, last row + 1).
    """

    points: Tensor
    segments: Sequence[tuple[int, int, int]]

    @classmethod
    def of(cls, points: Tensor) -> Rows:
        """Rows of ascending points."""
        values, counts = points.unique_consecutive(return_counts=True)
        stops = counts.cumsum(0).tolist()
        starts = [0, *stops[:-1]]
        return cls(points, list(zip(values.tolist(), starts, stops, strict=True)))

    def __len__(self) -> int:
        return len(self.points)


def slots_of(visible: Tensor, points: Points) -> list[Slots]:
    """Slots of each point; contiguous ones become slices, which copy nothing.

    Args:
        visible: What each point attends to, except itself, ``[n, pos]``, bool.
        points: The points.
    """
    found: list[Slots] = []
    for row, own in zip(visible, points.positions.tolist(), strict=True):
        ids = row.nonzero().flatten()
        first = int(ids[0]) if len(ids) else own
        runs = first + len(ids) == own and bool((ids < own).all())
        found.append(slice(first, own + 1) if runs else torch.cat([ids, ids.new_tensor([own])]))
    return found


def visible_slots(attention_mask: Tensor, points: Points, window: int | None) -> list[Slots]:
    """What each point attends to under causal attention.

    Args:
        attention_mask: ``[batch, pos]``.
        points: The points.
        window: How many slots a token sees, including its own; None: all before it.
    """
    slot = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    behind = points.positions.unsqueeze(-1) - slot
    seen = (behind > 0) & attention_mask[points.examples].bool()
    return slots_of(seen if window is None else seen & (behind < window), points)


def seen_slots(attention_mask: Tensor, window: int | None) -> list[Tensor]:
    """What every slot attends to under causal attention, itself included, ``[pos, pos]``, bool, for each example.

    Args:
        attention_mask: ``[batch, pos]``.
        window: As for ``visible_slots``.
    """
    slot = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    behind = slot.unsqueeze(-1) - slot
    before = (behind > 0) if window is None else (behind > 0) & (behind < window)
    return list(before & attention_mask.bool().unsqueeze(1) | (behind == 0))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: LayerKeys,
    points: Points,
    rows: Rows,
    scale: float,
    softcap: float | None = None,
    softmax_dtype: torch.dtype | None = None,
) -> Tensor:
    """Attention of single tokens over the stored keys and values of their example and over themselves.

    Args:
        query: ``[n, heads, d_head]``.
        key: Of the token itself, ``[n, kv_heads, d_head]``; query heads share them in groups.
        value: Of the token itself, ``[n, kv_heads, d_head]``.
        layer: The block's keys and values.
        points: All points of the prefix.
        rows: Which rows run which point.
        scale: Factor of the scores.
        softcap: Scores are bent to ``softcap * tanh(scores / softcap)``; None: they are not.
        softmax_dtype: The dtype in which the model normalises scores; None: their own.

    Returns:
        ``[n, heads, d_head]``.
    """
    n, heads, width = query.shape
    kv_heads, width_out = value.shape[1:]
    group = heads // kv_heads
    queries = query.reshape(n, kv_heads, group, width)
    own = scale * (queries * key.unsqueeze(2)).sum(-1).transpose(0, 1).reshape(kv_heads, n * group)
    queries = queries.transpose(0, 1).reshape(kv_heads, n * group, width)
    result = value.new_empty(n, kv_heads, group, width_out)
    by_head, now = result.transpose(0, 1), value.transpose(0, 1)
    examples, nothing = points.examples.tolist(), query.new_zeros(1, 1, 1)
    for point, start, stop in rows.segments:
        slots, mine = layer.slots[point], slice(start * group, stop * group)
        slots = slots if isinstance(slots, slice) else slots.to(query.device)  # the block may be on another device
        keys, values = layer.keys[examples[point]][:, slots], layer.values[examples[point]][:, slots]
        scores = torch.baddbmm(nothing, queries[:, mine], keys.transpose(1, 2), beta=0, alpha=scale)
        scores[..., -1] = own[:, mine]  # for the key that the token had in the forward
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        weights = torch.softmax(scores, dim=-1, dtype=softmax_dtype).to(values.dtype)
        mixed = torch.bmm(weights, values).view(kv_heads, stop - start, group, width_out)
        own_weight = weights[..., -1].view(kv_heads, stop - start, group, 1)
        change = (now[:, start:stop] - values[:, -1:]).unsqueeze(2)  # from the value that it had
        by_head[:, start:stop] = mixed.addcmul_(own_weight, change)
    return result.view(n, heads, width_out)
