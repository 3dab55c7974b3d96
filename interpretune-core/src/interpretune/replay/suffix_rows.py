"""Rows that run a token of an example and the tokens after it, and their attention over stored keys and values.

A change at one token leaves all earlier tokens unchanged. So rows that change a token before the answer run from that
token on: they attend to the stored keys before it, and to their own after it.
"""

from __future__ import annotations

import torch
from attrs import field, frozen
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.models.padding import position_ids
from interpretune.replay.prefix import LayerKeys, Prefix


@frozen(eq=False)
class VisibleKeys:
    """What the tokens of rows attend to in one block.

    Attributes:
        spans: Runs of rows of one example and the stored keys that they need: (example, first row, last row + 1, first
            slot, last slot + 1).
        mask: For each token, which of the stored keys of its span (padded to ``k``) and which of the row's own it
            attends to, ``[n, s, k + s]``, bool.
    """

    spans: list[tuple[int, int, int, int, int]]
    mask: Tensor


@frozen(eq=False)
class SuffixRows:
    """Rows of a replay that run several tokens in a row, each the same number.

    Shorter rows repeat their last token, to which no token before attends.

    Attributes:
        examples: Example of each row, ``[n]``; rows of one example stand together.
        positions: The tokens' slots in the batch, ``[n, s]``.
        slots: The same, counted as the stored keys are, ``[n, s]``.
        tokens: Their ids, ``[n, s]``.
        position_ids: Their positions among real tokens, ``[n, s]``.
        wanted: Where logits are wanted, counted from the row's first token, ``[n, w]``.
    """

    examples: Tensor
    positions: Tensor
    slots: Tensor
    tokens: Tensor
    position_ids: Tensor
    wanted: Tensor
    _visible: dict[int, VisibleKeys] = field(factory=dict)

    @classmethod
    def of(cls, inputs: ModelInputs, prefix: Prefix, examples: Tensor, starts: Tensor, wanted: Tensor) -> SuffixRows:
        """Rows of a batch.

        Args:
            inputs: The batch.
            prefix: Its stored keys and values.
            examples: Example of each row, those of one together, ``[n]``.
            starts: The first slot that each row runs, ``[n]``.
            wanted: Slots where logits are wanted, none before the first, ``[n, w]``; the highest is the row's last.
        """
        last = wanted.amax(-1, keepdim=True)
        first = starts.unsqueeze(-1)
        steps = torch.arange(int((last - first).max()) + 1, device=starts.device)
        positions, row = torch.minimum(first + steps, last), examples.unsqueeze(-1)
        slots = positions if prefix.first_slots is None else positions - prefix.first_slots[row]
        numbers = position_ids(inputs.attention_mask)
        return cls(examples, positions, slots, inputs.tokens[row, positions], numbers[row, positions], wanted - first)

    def __len__(self) -> int:
        return len(self.examples)

    def of_tokens(self, values: Tensor) -> Tensor:
        """The values of the rows' tokens: ``[batch, pos, ...]`` to ``[n, s, ...]``."""
        return values[self.examples.unsqueeze(-1), self.positions]

    def visible(self, layer: LayerKeys) -> VisibleKeys:
        """What the rows attend to in a block; found once for all blocks that see the same."""
        if (known := id(layer.seen)) not in self._visible:
            self._visible[known] = self._find_visible(layer)
        return self._visible[known]

    def _find_visible(self, layer: LayerKeys) -> VisibleKeys:
        examples, counts = self.examples.unique_consecutive(return_counts=True)
        stops = counts.cumsum(0).tolist()
        length = self.slots.shape[1]
        spans, before, own = [], [], []
        for example, start, stop in zip(examples.tolist(), [0, *stops[:-1]], stops, strict=True):
            slots = self.slots[start:stop]
            seen = layer.seen()[example][slots]
            slot = torch.arange(seen.shape[-1], device=slots.device)
            own.append(seen.gather(2, slots.unsqueeze(1).expand(-1, length, -1)))
            stored = seen & (slot < slots[:, :1]).unsqueeze(1)
            used = stored.flatten(0, 1).any(0).nonzero().flatten()
            first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
            spans.append((example, start, stop, first, last))
            before.append(stored[..., first:last])
        most = max(last - first for *_, first, last in spans)
        padded = [torch.nn.functional.pad(item, (0, most - item.shape[-1])) for item in before]
        return VisibleKeys(spans, torch.cat([torch.cat(padded), torch.cat(own).tril()], dim=-1))


def attend_suffixes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: LayerKeys,
    rows: SuffixRows,
    scale: float,
    softcap: float | None = None,
    softmax_dtype: torch.dtype | None = None,
) -> Tensor:
    """Attention of the rows' tokens over the stored keys and values before them and over those of their row.

    Args:
        query: ``[n, heads, s, d_head]``.
        key: Of the rows' tokens, ``[n, kv_heads, s, d_head]``; query heads share them in groups.
        value: Of the rows' tokens, ``[n, kv_heads, s, d_head]``.
        layer: The block's keys and values.
        rows: The rows.
        scale: Factor of the scores.
        softcap: As for ``attend``.
        softmax_dtype: As for ``attend``.

    Returns:
        ``[n, s, heads, d_head]``.
    """
    n, heads, length, width = query.shape
    kv_heads, width_out = value.shape[1], value.shape[-1]
    group, visible = heads // kv_heads, rows.visible(layer)
    mask = visible.mask.to(query.device)  # the block may be on another device
    stored = mask.shape[-1] - length
    queries = (scale * query).reshape(n, kv_heads, group * length, width).transpose(0, 1).contiguous()
    scores = query.new_zeros(kv_heads, n, group * length, stored + length)
    scores[..., stored:] = queries @ key.permute(1, 0, 3, 2)
    spans = [(example, slice(a, b), slice(first, last)) for example, a, b, first, last in visible.spans if first < last]
    for example, mine, slots in spans:
        here = queries[:, mine].flatten(1, 2) @ layer.keys[example][:, slots].transpose(1, 2)
        scores[:, mine, :, : here.shape[-1]] = here.unflatten(1, (-1, group * length))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores.view(kv_heads, n, group, length, -1).masked_fill_(~mask.unsqueeze(1), -torch.inf)
    weights = torch.softmax(scores, dim=-1, dtype=softmax_dtype).to(value.dtype)
    mixed = weights[..., stored:] @ value.transpose(0, 1)
    for example, mine, slots in spans:
        values = layer.values[example][:, slots]
        here = weights[:, mine, :, : values.shape[1]].flatten(1, 2) @ values
        mixed[:, mine] += here.unflatten(1, (-1, group * length))
    by_token = mixed.view(kv_heads, n, group, length, width_out).permute(1, 3, 0, 2, 4)
    return by_token.reshape(n, length, heads, width_out)
