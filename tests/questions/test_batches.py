"""Batches of encoded rows: padding on either side, answers behind their prompts, spans and corrupted prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interpretune.errors import ConfigurationError, DataError
from interpretune.questions import EncodedRow, PromptRow, batches, with_answers
from tests.tiny import tiny_llama

PAD = 9
SIDES = ("left", "right")
IDS = st.lists(st.integers(0, PAD), min_size=1, max_size=5)  # the padding token also stands in prompts


def encoded(prompt: list[int], *answers: list[int], correct: int = 0, **options: Any) -> EncodedRow:
    row = PromptRow("a text", [f" {i}" for i in range(len(answers))], correct=correct)
    corrupted, spans = options.get("corrupted"), options.get("spans", {})
    made = None if corrupted is None else torch.tensor(corrupted)
    return EncodedRow(row, torch.tensor(prompt), tuple(map(tuple, answers)), correct, made, spans)


ROWS = st.lists(st.builds(encoded, IDS, IDS, IDS, correct=st.integers(0, 1)), min_size=1, max_size=7)


def real(inputs: Any) -> list[list[int]]:
    """The tokens of each row that are not padding."""
    pairs = zip(inputs.tokens.tolist(), inputs.attention_mask.tolist(), strict=True)
    return [[token for token, is_real in zip(*pair, strict=True) if is_real] for pair in pairs]


@pytest.mark.parametrize("side", SIDES)
@settings(deadline=None)
@given(rows=ROWS, size=st.integers(1, 4), sort=st.booleans())
def test_every_row_is_in_one_batch_padded_on_its_side(side, rows, size, sort):
    made = list(batches(rows, size, PAD, side, sort_by_length=sort))
    order = [i for batch in made for i in batch.rows]
    assert sorted(order) == list(range(len(rows)))
    lengths = [len(rows[i].tokens) for i in order]
    assert lengths == sorted(lengths, reverse=True) if sort else order == sorted(order)
    assert [len(batch.rows) for batch in made[:-1]] == [size] * (len(made) - 1)
    for batch in made:
        assert [id(row) for row in batch.encoded] == [id(rows[i]) for i in batch.rows]
        assert real(batch.inputs) == [rows[i].tokens.tolist() for i in batch.rows]
        assert batch.inputs.tokens.shape[1] == max(len(rows[i].tokens) for i in batch.rows)
        assert (batch.inputs.tokens[batch.inputs.attention_mask == 0] == PAD).all()
        edge = batch.inputs.attention_mask[:, -1 if side == "left" else 0]
        assert edge.all()
        starts = batch.starts
        firsts = batch.inputs.tokens[torch.arange(len(starts)), starts]
        assert firsts.tolist() == [int(rows[i].tokens[0]) for i in batch.rows]


@pytest.mark.parametrize("side", SIDES)
@settings(deadline=None)
@given(rows=ROWS, which=st.sampled_from([0, 1, None]))
def test_answers_follow_their_prompts(side, rows, which):
    [batch] = batches(rows, len(rows), PAD, side)
    answered = with_answers(batch, which)
    chosen = [row.answers[row.correct if which is None else which] for row in rows]
    assert real(answered.inputs) == [
        [*row.tokens.tolist(), *answer[:-1]] for row, answer in zip(rows, chosen, strict=True)
    ]
    assert answered.tokens.tolist() == [token for answer in chosen for token in answer]
    seen = [[] for _ in rows]  # of each row, the tokens up to each point and the token that is predicted there
    examples, positions = answered.points.examples.tolist(), answered.points.positions.tolist()
    for example, position, token in zip(examples, positions, answered.tokens.tolist(), strict=True):
        mask = answered.inputs.attention_mask[example, : position + 1].bool()
        before = answered.inputs.tokens[example, : position + 1][mask].tolist()
        assert answered.inputs.attention_mask[example, position] == 1
        seen[example].append((before, token))
    for row, answer, pairs in zip(rows, chosen, seen, strict=True):
        prompt = row.tokens.tolist()
        assert pairs == [([*prompt, *answer[:k]], token) for k, token in enumerate(answer)]


@pytest.mark.parametrize("side", SIDES)
def test_log_probabilities_are_those_of_rows_alone(side):
    model = tiny_llama()
    rows = [encoded([5, 6, 7], [8, 3, 4], [2]), encoded([5, 1], [7], [8, 8], correct=1), encoded([3], [1, 2], [4])]
    [batch] = batches(rows, 3, PAD, side)
    answered = with_answers(batch, [0, 1, 1])
    mask = answered.inputs.attention_mask
    with torch.no_grad():
        logits = model(
            answered.inputs.tokens, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)
        ).logits
        found = answered.points.of(logits).log_softmax(-1).gather(-1, answered.tokens[:, None])[:, 0]
        wanted = []
        for row, answer in zip(rows, ((8, 3, 4), (8, 8), (4,)), strict=True):
            tokens = row.tokens.tolist()
            for token in answer:
                wanted.append(model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)[token])
                tokens.append(token)
    assert torch.allclose(found, torch.stack(wanted), atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_spans_and_corrupted_prompts_are_padded_alike(side):
    rows = [
        encoded([1, 2, 3, 4], [5], corrupted=[1, 7, 8, 4], spans={"middle": (1, 3)}),
        encoded([6, 2], [5], corrupted=[6, 3], spans={"middle": (1, 2)}),
    ]
    [batch] = batches(rows, 2, PAD, side)
    assert batch.span("middle").of(batch.inputs.tokens).tolist() == [2, 3, 2]
    assert batch.span("middle").of(batch.corrupted.tokens).tolist() == [7, 8, 3]
    assert batch.span("middle").examples.tolist() == [0, 0, 1]
    assert torch.equal(batch.corrupted.attention_mask, batch.inputs.attention_mask)


def test_no_rows_are_no_batches():
    assert list(batches([], 4, PAD)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, PAD), "The size of batches is 0; give the number of rows"),
        ((True, PAD), "The size of batches is True"),
        ((2, None), "The token for padding is None; give its id"),
        ((2, -1), "The token for padding is -1"),
        ((2, PAD, "top"), "The padding side is 'top'"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        batches([encoded([1], [2])], *arguments)


def test_what_a_row_lacks_is_said():
    [_, batch] = batches([encoded([1], [2]), encoded([1], [2], [3], spans={"s": (0, 1)})], 1, PAD)
    with pytest.raises(DataError, match=r"Row 1 has no span 'name'; its spans are \['s'\]"):
        batch.span("name")
    with pytest.raises(DataError, match="Row 1 has no corrupted prompt"):
        _ = batch.corrupted
    for wrong in (2, -1, True, "0", ["0"], 1.0):
        with pytest.raises(DataError, match="Row 1 has no answer .*; it has 2, counted from 0"):
            with_answers(batch, wrong)
    with pytest.raises(DataError, match="chosen for 2 rows of a batch of 1"):
        with_answers(batch, [0, 1])
