"""Steering where only positions of which logits are wanted are seen, against whole sequences without a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune.analysis import (
    Add,
    Intervention,
    ModelInputs,
    Patch,
    generate_with_interventions,
    interventions_in_place,
)
from tests.backends.test_steered_generation import (
    BATCHES,
    NEW,
    TEXTS,
    WHERE,
    batch_of,
    cache_options,
    chosen,
    options_of,
    plain,
    prompts_of,
)
from tests.sessions import STACKS
from tests.tiny_architectures import backend_of, make_model

VOCABULARY = plain().config.vocab_size
PUSH = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=STACKS)
def session(request: pytest.FixtureRequest, session_of: Callable[..., it.ITSession]) -> it.ITSession:
    return session_of("llama", request.param, "left")


def by_hand(model: Any, prompt: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """What a model continues a prompt with, ``[1, new]``, where its logits ``[1, pos, vocab]`` are changed."""
    tokens = prompt.unsqueeze(0)
    with torch.no_grad():
        for _ in range(NEW):
            following = change(model(input_ids=tokens, use_cache=False).logits)[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, following], dim=1)
    return tokens[:, len(prompt) :]


def pushed(where: str, prompt: Tensor) -> Callable[[Tensor], Tensor]:
    def change(logits: Tensor) -> Tensor:
        return logits + 6 * PUSH * chosen(where, len(prompt), logits.shape[1]).reshape(1, -1, 1)

    return change


@pytest.mark.parametrize(
    ("lengths", "side"), [("1", "right"), ("5", "left"), ("1 and 4", "left"), ("1 and 4", "right")]
)
@pytest.mark.parametrize("where", WHERE)
def test_logits_are_steered_at_the_tokens_named(session: it.ITSession, where: Any, lengths: str, side: str) -> None:
    prompts = prompts_of(BATCHES[lengths])
    wanted = torch.cat([by_hand(plain(), prompt, pushed(where, prompt)) for prompt in prompts])
    item = Add(at="logits", value=PUSH, scale=6.0, positions=where)
    for options in cache_options(session):
        found = generate_with_interventions(
            session.module.backend,
            session.module.it_generate,
            batch_of(session, prompts, side),
            [item],
            **options_of(session, **options),
        )
        assert torch.equal(found.sequences[:, -NEW:], wanted), options
    assert not torch.equal(torch.cat([by_hand(plain(), prompt, lambda logits: logits) for prompt in prompts]), wanted)


def test_logits_of_each_row_are_patched_from_its_own(session: it.ITSession) -> None:
    prompts = prompts_of((1, 4, 2))
    source = torch.randn(3, 4, VOCABULARY, generator=torch.Generator().manual_seed(2)) * 4

    def patched(i: int, length: int) -> Callable[[Tensor], Tensor]:
        return lambda logits: torch.cat([source[i : i + 1, 4 - length :], logits[:, length:]], dim=1)

    wanted = torch.cat([by_hand(plain(), prompt, patched(i, len(prompt))) for i, prompt in enumerate(prompts)])
    found = generate_with_interventions(
        session.module.backend, session.module.it_generate, batch_of(session, prompts),
        [Patch(at="logits", source=source, positions="prompt")],
        **options_of(session),
    )  # fmt: skip
    assert torch.equal(found.sequences[:, -NEW:], wanted)


@pytest.mark.parametrize("where", WHERE)
def test_what_goes_into_the_unembedding_is_steered(session_of: Callable[..., it.ITSession], where: Any) -> None:
    session, prompts = session_of("llama", "core", "left"), prompts_of((1, 4))
    vector = torch.randn(32, generator=torch.Generator().manual_seed(4)) * 6
    change = plain().lm_head.weight.detach() @ vector

    def pushed_in(prompt: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda logits: logits + change * chosen(where, len(prompt), logits.shape[1]).reshape(1, -1, 1)

    wanted = torch.cat([by_hand(plain(), prompt, pushed_in(prompt)) for prompt in prompts])
    for side in ("left", "right"):
        found = generate_with_interventions(
            session.module.backend, session.module.it_generate, batch_of(session, prompts, side),
            [Add(at="lm_head:in", value=vector, positions=where)],
            **options_of(session),
        )  # fmt: skip
        assert torch.equal(found.sequences[:, -NEW:], wanted)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("where", WHERE)
def test_logits_of_a_recurrent_model_are_steered(where: Any, cached: bool) -> None:
    """Its cache holds the call by the time that logits are reached."""
    model = make_model("mamba", torch.float32)
    model.generation_config.eos_token_id = None
    prompt = TEXTS[:5] % 90 + 3
    push = torch.randn(model.config.vocab_size, generator=torch.Generator().manual_seed(3)) * 6
    wanted = by_hand(model, prompt, lambda logits: logits + push * chosen(where, 5, logits.shape[1]).reshape(1, -1, 1))
    inputs = ModelInputs(prompt.unsqueeze(0), torch.ones(1, 5, dtype=torch.long))
    item = Add(at="lm_head:out", value=push, positions=where)
    with torch.no_grad(), interventions_in_place(backend_of(model), inputs, [item]):
        for _ in range(2):
            found = model.generate(inputs.tokens, max_new_tokens=NEW, do_sample=False, use_cache=cached, pad_token_id=0)
            assert torch.equal(found[:, 5:], wanted)


@pytest.mark.parametrize("keep", [0, 2, [-1, 0], [1, 3]])
@pytest.mark.parametrize("where", ["answer", "all", "prompt"])
def test_logits_that_a_caller_keeps_are_edited(
    session_of: Callable[..., it.ITSession], where: Any, keep: int | Sequence[int]
) -> None:
    session = session_of("llama", "core", "left")
    inputs = ModelInputs.from_batch(batch_of(session, prompts_of((4, 2)), "left"))
    batch = {"input_ids": inputs.tokens, "attention_mask": inputs.attention_mask}
    items: list[Intervention] = [Add(at="logits", value=PUSH, positions=where)]
    with torch.no_grad(), interventions_in_place(session.module.backend, inputs, items):
        whole = session.module(**batch).logits
        chosen_here = torch.tensor(keep) if isinstance(keep, list) else keep
        found = session.module(**batch, logits_to_keep=chosen_here).logits
    wanted = whole[:, keep] if isinstance(keep, list) else whole[:, -keep:]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_runs_at_the_answer_are_edited_or_refused(session: it.ITSession) -> None:
    """A bridge narrows by a hook of the backend, of which its arguments do not tell."""
    inputs = ModelInputs.from_batch(batch_of(session, prompts_of((4, 2)), "right"))
    backend = session.module.backend
    with torch.no_grad(), interventions_in_place(backend, inputs, [Add(at="logits", value=PUSH, positions="answer")]):
        whole = backend.forward(inputs, {})
        if "transformer_lens" not in session.context.names:
            torch.testing.assert_close(backend.run(inputs), inputs.answers.of(whole), rtol=0, atol=1e-5)
            return
        one = ModelInputs(inputs.tokens[:, :3], inputs.attention_mask[:, :3])
        with pytest.raises(it.AnalysisError, match=r"gave logits at 2 positions.*backend\.forward"):
            backend.run(one)
