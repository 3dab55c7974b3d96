"""Left-padded, right-padded and unpadded rows are one and the same to forward, analyses and generation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

import interpretune as it
from interpretune.analysis import ModelInputs
from interpretune.models.padding import answer_positions
from tests.sessions import STACKS, padded, plain_model, unpadded_rows
from tests.tiny import TINY_MODELS
from tests.tiny_latents import last_logits

NEW_TOKENS = 4


CASES = [
    (kind, stack, ("left", "right")[(i + j) % 2])
    for i, stack in enumerate(STACKS)
    for j, kind in enumerate(TINY_MODELS)
]
"""The last is the tokenizer's own padding side, which is either for each model and each stack; batches have both."""


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    return request.param


@pytest.fixture
def kind(case: tuple[str, str, str]) -> str:
    return case[0]


@pytest.fixture
def session(case: tuple[str, str, str], session_of: Callable[..., it.ITSession]) -> it.ITSession:
    return session_of(*case)


@pytest.fixture
def rows(session: it.ITSession) -> list[Tensor]:
    """Rows of unequal length, a very short one and one with BOS in its middle among them."""
    found = [tokens for tokens, _ in unpadded_rows(session)]
    bos = session.datamodule.tokenizer.bos_token_id
    return [found[0], found[4][:2], torch.cat([found[2][:5], torch.tensor([bos]), found[2][5:]]), found[3]]


@pytest.fixture
def expected(kind: str, rows: list[Tensor]) -> Tensor:
    model = plain_model(kind)
    with torch.no_grad():
        return torch.stack([last_logits(model, row) for row in rows])


def close(found: Tensor, wanted: Tensor) -> None:
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def as_batch(rows: list[Tensor], side: str, session: it.ITSession) -> dict[str, Tensor]:
    return padded(rows, side, session.datamodule.tokenizer.pad_token_id)


def logits_of(output: Tensor | object) -> Tensor:
    return getattr(output, "logits", output)


@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_gives_the_logits_of_unpadded_rows(
    session: it.ITSession, rows: list[Tensor], expected: Tensor, side: str
) -> None:
    batch = as_batch(rows, side, session)
    where = answer_positions(batch["attention_mask"])
    with torch.no_grad():
        logits = logits_of(session.module(**batch))
    close(logits[torch.arange(len(rows)), where], expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_backend_gives_the_logits_of_unpadded_rows(
    session: it.ITSession, rows: list[Tensor], expected: Tensor, side: str
) -> None:
    inputs = ModelInputs.from_batch(as_batch(rows, side, session))
    with torch.no_grad():
        close(session.module.backend.run(inputs), expected)
        everywhere = session.module.backend.forward(inputs, {})
    close(everywhere[torch.arange(len(rows)), inputs.answer_positions], expected)


def test_one_row_alone_gives_the_same(session: it.ITSession, rows: list[Tensor], expected: Tensor) -> None:
    for row, wanted in zip(rows, expected, strict=True):
        batch = as_batch([row], "left", session)
        with torch.no_grad():
            close(logits_of(session.module(**batch))[0, -1], wanted)
            close(session.module.backend.run(ModelInputs.from_batch(batch))[0], wanted)


def test_tokens_alone_reach_the_model_by_position(session: it.ITSession, rows: list[Tensor], expected: Tensor) -> None:
    with torch.no_grad():
        close(logits_of(session.module(rows[0].unsqueeze(0)))[0, -1], expected[0])


def greedy(kind: str, row: Tensor, eos: int) -> tuple[list[int], Tensor]:
    """Tokens and logits of plain greedy decoding of one row until the end token, a whole forward for each token."""
    model, tokens, logits = plain_model(kind), [], []
    while len(tokens) < NEW_TOKENS and eos not in tokens:
        with torch.no_grad():
            logits.append(last_logits(model, torch.cat([row, torch.tensor(tokens, dtype=torch.long)])))
        tokens.append(int(logits[-1].argmax()))
    return tokens, torch.stack(logits)


@pytest.mark.parametrize("batched", ["left", "right", "one by one"])
def test_generation_is_that_of_unpadded_rows(
    session: it.ITSession, rows: list[Tensor], kind: str, batched: str
) -> None:
    groups = [[row] for row in rows] if batched == "one by one" else [rows]
    for group in groups:
        batch = as_batch(group, "left" if len(group) == 1 else batched, session)
        result = session.module.it_generate(batch, max_new_tokens=NEW_TOKENS, do_sample=False)
        assert isinstance(result.logits, tuple)
        width = batch["input_ids"].shape[1]
        for i, row in enumerate(group):
            wanted, logits = greedy(kind, row, session.datamodule.tokenizer.eos_token_id)
            assert result.sequences[i, width:][: len(wanted)].tolist() == wanted
            close(torch.stack([step[i] for step in result.logits[: len(wanted)]]), logits)
            assert len(result.logits) == result.sequences.shape[1] - width <= NEW_TOKENS


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4), st.booleans()), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_answer_position_is_the_last_real_token(shapes: list[tuple[int, int, bool]]) -> None:
    width = max(real + padding for real, padding, _ in shapes)
    masks, wanted = [], []
    for real, _, left in shapes:
        ones, zeros = [1] * real, [0] * (width - real)
        masks.append(zeros + ones if left else ones + zeros)
        wanted.append(width - 1 if left else real - 1)
    assert answer_positions(torch.tensor(masks)).tolist() == wanted
