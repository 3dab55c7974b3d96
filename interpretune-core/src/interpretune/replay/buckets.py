"""Splits a batch by length, so that a forward wastes less on padding, and joins the parts again."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from attrs import evolve, frozen
from torch import Tensor

from interpretune.activations.inputs import ModelInputs, Points
from interpretune.replay.prefix import LayerKeys, Prefix, Seen, Slots

WORTH_IT = 0.85
"""Two forwards replace one if they have at most this share of its slots."""


@frozen(eq=False)
class Bucket:
    """Rows of a batch without the slots in which all of them have padding.

    Attributes:
        examples: Which rows, ``[b]``.
        inputs: These rows.
        points: The points in these rows, with positions counted from the bucket's first slot.
        point_ids: Their ids among all points, ``[n]``.
        first_slot: The slot of the batch with which it begins.
    """

    examples: Tensor
    inputs: ModelInputs
    points: Points
    point_ids: Tensor
    first_slot: int = 0


def length_buckets(inputs: ModelInputs, points: Points) -> list[Bucket]:
    """One bucket or two: the split by length with the fewest slots, if that is worth a second forward."""
    mask = inputs.attention_mask.bool()
    everything = torch.arange(len(inputs), device=mask.device)
    whole = Bucket(everything, inputs, points, torch.arange(len(points), device=mask.device))
    if len(inputs) < 2 or inputs.extra:
        return [whole]
    first = mask.int().argmax(dim=-1)
    last = mask.shape[1] - mask.flip(-1).int().argmax(dim=-1)
    order = (last - first).argsort()
    best, split = mask.numel() * WORTH_IT, 0
    for cut in range(1, len(order)):
        parts = (order[:cut], order[cut:])
        slots = sum(len(rows) * int(last[rows].max() - first[rows].min()) for rows in parts)
        if slots < best:
            best, split = slots, cut
    if not split:
        return [whole]
    return [_cut(inputs, points, rows.sort().values, first, last) for rows in (order[:split], order[split:])]


def _cut(inputs: ModelInputs, points: Points, rows: Tensor, first: Tensor, last: Tensor) -> Bucket:
    start, stop = int(first[rows].min()), int(last[rows].max())
    selected = inputs.select(rows)
    part = ModelInputs(
        selected.tokens[:, start:stop],
        selected.attention_mask[:, start:stop],
        prompt_ends=None if selected.prompt_ends is None else selected.prompt_ends - start,
    )
    new = torch.full((len(inputs),), -1, device=rows.device)
    new[rows] = torch.arange(len(rows), device=rows.device)
    mine = (new[points.examples] >= 0).nonzero().flatten()
    return Bucket(rows, part, Points(new[points.examples[mine]], points.positions[mine] - start), mine, start)


def together(buckets: Sequence[Bucket], parts: Sequence[Tensor]) -> Tensor:
    """The values of the buckets at their points, ``[n, ...]`` each, in the order of all points."""
    order = torch.cat([bucket.point_ids for bucket in buckets])
    joined = torch.cat(list(parts))
    return joined[order.argsort()]


def _seen(buckets: Sequence[Bucket], parts: Sequence[Seen]) -> list[Tensor]:
    """What slots of the examples of all buckets attend to, in the order of all examples."""
    found: dict[int, Tensor] = {}
    for bucket, seen in zip(buckets, parts, strict=True):
        found |= dict(zip(bucket.examples.tolist(), seen(), strict=True))
    return [found[i] for i in range(len(found))]


def one_prefix(buckets: Sequence[Bucket], prefixes: Sequence[Prefix], points: Points) -> Prefix:
    """The prefixes of all buckets as one, in the order of all examples and points."""
    if len(buckets) == 1:
        return evolve(prefixes[0], points=points)
    layers = {}
    shared: dict[tuple[int, ...], Seen] = {}
    for block in prefixes[0].layers:
        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        slots: dict[int, Slots] = {}
        for bucket, prefix in zip(buckets, prefixes, strict=True):
            layer = prefix.layers[block]
            for row, example in enumerate(bucket.examples.tolist()):
                keys[example], values[example] = layer.keys[row], layer.values[row]
            slots |= dict(zip(bucket.point_ids.tolist(), layer.slots, strict=True))
        in_order = range(len(keys))
        seen = [prefix.layers[block].seen for prefix in prefixes]
        layers[block] = LayerKeys(
            [keys[i] for i in in_order],
            [values[i] for i in in_order],
            [slots[i] for i in range(len(slots))],
            shared.setdefault(tuple(map(id, seen)), functools.cache(functools.partial(_seen, buckets, seen))),
        )
    first_slots = torch.zeros(
        sum(len(bucket.examples) for bucket in buckets), dtype=torch.long, device=points.positions.device
    )
    for bucket in buckets:
        first_slots[bucket.examples] = bucket.first_slot
    return Prefix(
        points,
        together(buckets, [prefix.tokens for prefix in prefixes]),
        together(buckets, [prefix.position_ids for prefix in prefixes]),
        layers,
        first_slots,
    )
