"""Attention of single tokens over what was kept equals attention of every row over its own keys and values."""

from __future__ import annotations

import pytest
import torch

from interpretune.analysis import Points
from interpretune.replay import LayerKeys, Rows, attend, slots_of

BATCH, SLOTS, KV_HEADS, GROUP, WIDTH, WIDTH_OUT = 3, 9, 2, 3, 4, 5
POINTS = Points(torch.tensor([0, 1, 1, 2]), torch.tensor([8, 4, 0, 6]))


def visible(kind: str) -> torch.Tensor:
    """What each point sees, itself excepted."""
    slots = torch.arange(SLOTS)
    seen = slots < POINTS.positions.unsqueeze(-1)
    if kind == "window":
        seen &= slots >= POINTS.positions.unsqueeze(-1) - 2
    if kind == "holes":
        seen &= (slots % 3 != 1) | (slots == 4)
    return seen


def test_slots_end_with_the_token_itself_and_runs_are_slices() -> None:
    assert slots_of(visible("all"), POINTS) == [slice(0, 9), slice(0, 5), slice(0, 1), slice(0, 7)]
    assert slots_of(visible("window"), POINTS) == [slice(6, 9), slice(2, 5), slice(0, 1), slice(4, 7)]
    found = [item if isinstance(item, slice) else item.tolist() for item in slots_of(visible("holes"), POINTS)]
    assert found == [[0, 2, 3, 4, 5, 6, 8], [0, 2, 3, 4], slice(0, 1), [0, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("kind", ["all", "window", "holes"])
def test_rows_attend_to_what_their_token_sees_and_to_themselves(kind: str, softcap: float | None) -> None:
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    keys, values = random(BATCH, KV_HEADS, SLOTS, WIDTH), random(BATCH, KV_HEADS, SLOTS, WIDTH_OUT)
    seen, rows = visible(kind), Rows.of(torch.tensor([0, 0, 0, 1, 2, 2, 3]))
    query, key, value = (random(len(rows), *shape) for shape in ((6, WIDTH), (KV_HEADS, WIDTH), (KV_HEADS, WIDTH_OUT)))
    leaves = [item.requires_grad_() for item in (query, key, value)]
    layer = LayerKeys(keys, values, slots_of(seen, POINTS))
    wanted = []
    for row, point in enumerate(rows.points.tolist()):
        ids, example = seen[point].nonzero().flatten(), int(POINTS.examples[point])
        for head in range(KV_HEADS * GROUP):
            at = head // GROUP
            mine = torch.cat([keys[example, at, ids], key[row, at].unsqueeze(0)])
            scores = 0.3 * mine @ query[row, head]
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            mixed = torch.cat([values[example, at, ids], value[row, at].unsqueeze(0)])
            wanted.append(scores.softmax(-1) @ mixed)
    expected = torch.stack(wanted).reshape(len(rows), KV_HEADS * GROUP, WIDTH_OUT)
    found = attend(query, key, value, layer, POINTS, rows, 0.3, softcap)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad((item**2).sum(), leaves, retain_graph=True) for item in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
