"""Steering against plain torch hooks on one unpadded prompt at a time, each forward on the whole sequence so far."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
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
    SetTo,
    generate_with_interventions,
    interventions_in_place,
)
from tests.sessions import STACKS, padded, plain_model
from tests.tiny_architectures import backend_of, make_model
from tests.tiny_latents import RandomDictionary, activations_of, hooked

PLACE = "blocks.1.hook_resid_post"
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))
NEW = 3
WHERE = ("all", "answer", "prompt", "generated")
TEXTS = torch.randint(5, 140, (8,), generator=torch.Generator().manual_seed(1))
BATCHES = {"1": (1,), "2": (2,), "5": (5,), "1 and 4": (1, 4)}


@pytest.fixture(params=STACKS)
def session(request: pytest.FixtureRequest, session_of: Callable[..., it.ITSession]) -> it.ITSession:
    return session_of("llama", request.param, "left")


def prompts_of(lengths: Sequence[int]) -> list[Tensor]:
    return [TEXTS.roll(i)[:length] for i, length in enumerate(lengths)]


def chosen(where: str, prompt: int, length: int) -> Tensor:
    """Slots of a sequence that an intervention changes, ``[length]``, bool."""
    slot = torch.arange(length)
    return {"all": slot >= 0, "answer": slot == prompt - 1, "prompt": slot < prompt, "generated": slot >= prompt}[where]


@cache
def plain() -> Any:
    return plain_model("llama")


def by_hand(prompt: Tensor, change: Callable[[Tensor], Tensor], new: int = NEW, **options: Any) -> Tensor:
    """What a plain model continues one prompt with, ``[sequences, new]``."""
    model = plain()
    with torch.no_grad(), hooked(model, [(PLACE, change)]):
        found = model.generate(
            input_ids=prompt.unsqueeze(0), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=new,
            eos_token_id=None, pad_token_id=0, use_cache=False, **{"do_sample": False, **options},
        )  # fmt: skip
    return found[:, len(prompt) :]


def added(where: str, prompt: Tensor, scale: float = 6.0) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        return x + scale * VECTOR * chosen(where, len(prompt), x.shape[1]).reshape(1, -1, 1)

    return change


@cache
def steered_by_hand(where: str | None, lengths: str) -> Tensor:
    """What a plain model continues each prompt with, ``[prompt, new]``; None: nothing is added."""
    found = [by_hand(prompt, added(where, prompt) if where else lambda x: x) for prompt in prompts_of(BATCHES[lengths])]
    return torch.cat(found)


def options_of(session: it.ITSession, **options: Any) -> dict[str, Any]:
    ends = {"stop_at_eos": False} if "transformer_lens" in session.context.names else {"eos_token_id": None}
    return {"max_new_tokens": NEW, "do_sample": False, **ends, **options}


def batch_of(session: it.ITSession, prompts: Sequence[Tensor], side: str = "right") -> dict[str, Tensor]:
    return padded(prompts, side, session.datamodule.tokenizer.pad_token_id)


def cache_options(session: it.ITSession) -> list[dict[str, Any]]:
    if "transformer_lens" not in session.context.names:
        return [{"use_cache": True}, {"use_cache": False}, {"use_cache": True, "prefill_chunk_size": 2}]
    if hasattr(session.module.model, "original_model"):
        return [{"use_past_kv_cache": True}, {"use_past_kv_cache": False}]
    return [{}]


@pytest.mark.parametrize(
    ("lengths", "side"), [("1", "right"), ("2", "left"), ("5", "right"), ("1 and 4", "left"), ("1 and 4", "right")]
)
@pytest.mark.parametrize("where", WHERE)
def test_positions_mean_the_same_tokens_with_and_without_a_cache(
    session: it.ITSession, where: Any, lengths: str, side: str
) -> None:
    prompts, wanted = prompts_of(BATCHES[lengths]), steered_by_hand(where, lengths)
    for options in cache_options(session):
        item = Add(at=PLACE, value=VECTOR, scale=6.0, positions=where)
        found = generate_with_interventions(
            session.module.backend,
            session.module.it_generate,
            batch_of(session, prompts, side),
            [item],
            **options_of(session, **options),
        )
        assert torch.equal(found.sequences[:, -NEW:], wanted), options
    assert not torch.equal(steered_by_hand(None, lengths), wanted)


@pytest.mark.parametrize("side", ["left", "right"])
def test_several_sequences_of_a_prompt_are_steered_alike(session: it.ITSession, side: str) -> None:
    """Sampling among one token is greedy: each copy of a row continues as the row does alone."""
    prompts, n = prompts_of((1, 4, 2)), 3
    batch = batch_of(session, prompts, side)
    for change, items in by_row(prompts):
        wanted = [by_hand(prompt, change(i, prompt)) for i, prompt in enumerate(prompts)]
        found = generate_with_interventions(
            session.module.backend,
            session.module.it_generate,
            batch,
            items,
            **options_of(session, do_sample=True, top_k=1, num_return_sequences=n),
        )
        assert torch.equal(found.sequences[:, -NEW:], torch.cat(wanted).repeat_interleave(n, dim=0))


def by_row(prompts: Sequence[Tensor]) -> Iterator[tuple[Callable[[int, Tensor], Any], list[Intervention]]]:
    """Changes that differ from row to row: by hand for a row, and as interventions on the batch padded on the left."""
    width = max(map(len, prompts))
    first = torch.tensor([width - len(prompt) for prompt in prompts])
    second = torch.zeros(len(prompts), width, dtype=torch.bool)
    second[1, -1] = True
    yield (
        lambda i, prompt: added("answer", prompt) if i == 1 else lambda x: x,
        [Add(at=PLACE, value=VECTOR, scale=6.0, positions=second)],
    )
    source = torch.randn(len(prompts), width, 32, generator=torch.Generator().manual_seed(2)) * 4

    def patched(i: int, prompt: Tensor) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            return torch.cat([source[i, first[i] :].expand(len(x), -1, -1), x[:, len(prompt) :]], dim=1)

        return change

    yield patched, [Patch(at=PLACE, source=source, positions="prompt")]

    def set_first(i: int, prompt: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.where(torch.arange(x.shape[1]).reshape(1, -1, 1) == 0, 5 * VECTOR, x)

    yield set_first, [SetTo(at=PLACE, value=5 * VECTOR, positions=first)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("where", WHERE)
def test_beams_are_steered_as_those_of_a_prompt_alone(
    session_of: Callable[..., it.ITSession], where: Any, side: str
) -> None:
    session = session_of("llama", "core", "left")
    prompts, beams = prompts_of((1, 4, 2)), {"num_beams": 3, "num_return_sequences": 2}
    wanted = torch.cat([by_hand(prompt, added(where, prompt), **beams) for prompt in prompts])
    found = generate_with_interventions(
        session.module.backend, session.module.it_generate, batch_of(session, prompts, side),
        [Add(at=PLACE, value=VECTOR, scale=6.0, positions=where)], **options_of(session, **beams),
    )  # fmt: skip
    assert torch.equal(found.sequences[:, -NEW:], wanted)
    free = torch.cat([by_hand(prompt, lambda x: x, **beams) for prompt in prompts])
    assert not torch.equal(free, wanted)


def test_beams_follow_changes_by_row(session_of: Callable[..., it.ITSession]) -> None:
    session = session_of("llama", "core", "left")
    prompts, beams = prompts_of((1, 4, 2)), {"num_beams": 3, "num_return_sequences": 3}
    for change, items in by_row(prompts):
        wanted = torch.cat([by_hand(prompt, change(i, prompt), **beams) for i, prompt in enumerate(prompts)])
        found = generate_with_interventions(
            session.module.backend,
            session.module.it_generate,
            batch_of(session, prompts),
            items,
            **options_of(session, **beams),
        )
        assert torch.equal(found.sequences[:, -NEW:], wanted)


def test_untouched_tokens_of_a_latent_model_follow_the_prompt(session: it.ITSession) -> None:
    """The first token of a prompt stays as it is; those that follow a prompt of one token do not."""
    item = RandomDictionary(PLACE, seed=1, skips=True)
    special = session.module.backend.special_token_ids()
    prompts, n = prompts_of((1, 4, 2)), 2

    def spliced(prompt: Tensor) -> Callable[[Tensor], Tensor]:
        alone = torch.isin(prompt, special) | (torch.arange(len(prompt)) == 0)
        alone[-1] = False

        def change(x: Tensor) -> Tensor:
            left = torch.cat([alone, torch.zeros(x.shape[1] - len(prompt), dtype=torch.bool)]).reshape(1, -1, 1)
            latents = item.encode(x) * ~left
            latents[..., 3] += 5.0 * chosen("all", len(prompt), x.shape[1])
            return torch.where(left, x, item.decode(latents))

        return change

    wanted = torch.cat([by_hand(prompt, spliced(prompt)) for prompt in prompts])
    found = generate_with_interventions(
        session.module.backend,
        session.module.it_generate,
        batch_of(session, prompts),
        [Add(at=activations_of(item), value=5.0, latents=[3])],
        [item],
        **options_of(session, do_sample=True, top_k=1, num_return_sequences=n),
    )
    assert torch.equal(found.sequences[:, -NEW:], wanted.repeat_interleave(n, dim=0))


# ------------------------------------------------------------------------------------------------------- own loops


@contextlib.contextmanager
def steered(session: it.ITSession, prompts: Sequence[Tensor], where: Any) -> Iterator[ModelInputs]:
    inputs = ModelInputs.from_batch(batch_of(session, prompts, "left"))
    item = Add(at=PLACE, value=VECTOR, scale=6.0, positions=where)
    with torch.no_grad(), interventions_in_place(session.module.backend, inputs, [item]):
        yield inputs


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("lengths", ["1", "1 and 4"])
def test_two_generations_in_one_block_begin_anew(session: it.ITSession, where: str, lengths: str) -> None:
    prompts, wanted = prompts_of(BATCHES[lengths]), steered_by_hand(where, lengths)
    with steered(session, prompts, where) as inputs:
        batch = {"input_ids": inputs.tokens, "attention_mask": inputs.attention_mask}
        for options in (*cache_options(session), *cache_options(session)):
            found = session.module.it_generate(batch, **options_of(session, **options))
            assert torch.equal(found.sequences[:, -NEW:], wanted), options


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("lengths", ["1", "1 and 4"])
def test_a_loop_of_the_user_s_own_on_whole_sequences(session: it.ITSession, where: str, lengths: str) -> None:
    prompts, wanted = prompts_of(BATCHES[lengths]), steered_by_hand(where, lengths)
    for _ in range(2):
        with steered(session, prompts, where) as inputs:
            tokens, mask = inputs.tokens, inputs.attention_mask
            for _ in range(NEW):
                logits = session.module(input_ids=tokens, attention_mask=mask)
                logits = getattr(logits, "logits", logits)[:, -1]
                tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        assert torch.equal(tokens[:, -NEW:], wanted)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("pieces", [(1,), (1, 1, 1), (2, 3)])
def test_a_loop_of_the_user_s_own_over_a_cache(session: it.ITSession, where: str, pieces: Sequence[int]) -> None:
    """The prompt may come in pieces; two loops one after the other, each with a cache of its own."""
    prompt = TEXTS[: sum(pieces)]
    wanted = by_hand(prompt, added(where, prompt))
    model = session.module.model
    with steered(session, [prompt], where):
        for _ in range(2):
            kept, call = own_cache(model)
            found, start = prompt.unsqueeze(0), 0
            for piece in (*pieces, *[1] * (NEW - 1)):
                logits = call(found[:, start : start + piece], kept)
                start += piece
                if start >= len(prompt):
                    found = torch.cat([found, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            assert torch.equal(found[:, -NEW:], wanted)


def own_cache(model: Any) -> tuple[Any, Callable[[Tensor, Any], Tensor]]:
    """An empty cache of the model's kind, and a call with it."""
    from transformers import DynamicCache

    if hasattr(model, "original_model"):
        return DynamicCache(), lambda tokens, cache: model(tokens, past_key_values=cache, use_cache=True)
    if hasattr(model, "cfg"):
        from transformer_lens import TransformerLensKeyValueCache

        cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 1)
        return cache, lambda tokens, cache: model(tokens, past_kv_cache=cache)
    return DynamicCache(), lambda tokens, cache: model(tokens, past_key_values=cache).logits


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_recurrent_model_is_steered_at_the_same_tokens(length: int, where: Any, cached: bool) -> None:
    """Its cache keeps no keys and does not count."""
    model = make_model("mamba", torch.float32)
    model.generation_config.eos_token_id = None
    tokens = TEXTS[:length].unsqueeze(0) % 90 + 3
    block = model.backbone.layers[1]
    place = f"{next(name for name, part in model.named_modules() if part is block)}:out"
    vector = VECTOR * 6

    def change(_: Any, __: Any, output: Any) -> Any:
        at = chosen(where, length, output.shape[1]).reshape(1, -1, 1)
        return output + vector * at

    handle = block.register_forward_hook(change)
    wanted = tokens
    with torch.no_grad():
        for _ in range(NEW):
            following = model(input_ids=wanted, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            wanted = torch.cat([wanted, following], dim=1)
    handle.remove()
    backend = backend_of(model)
    inputs = ModelInputs(tokens, torch.ones_like(tokens))
    item = Add(at=place, value=VECTOR, scale=6.0, positions=where)
    with torch.no_grad(), interventions_in_place(backend, inputs, [item]):
        for _ in range(2):
            found = model.generate(tokens, max_new_tokens=NEW, do_sample=False, use_cache=cached, pad_token_id=0)
            assert torch.equal(found, wanted)


def test_assisted_decoding_is_steered_as_greedy_decoding(session_of: Callable[..., it.ITSession]) -> None:
    """Candidates are tried and taken back: the cache becomes shorter again."""
    session = session_of("llama", "core", "left")
    prompt = torch.tensor([7, 8, 9, 7, 8, 9, 7, 8])
    wanted = by_hand(prompt, added("generated", prompt, 2.0), new=8)
    found = generate_with_interventions(
        session.module.backend, session.module.it_generate, batch_of(session, [prompt]),
        [Add(at=PLACE, value=VECTOR, scale=2.0, positions="generated")],
        **options_of(session, max_new_tokens=8, prompt_lookup_num_tokens=3, max_matching_ngram_size=1),
    )  # fmt: skip
    assert torch.equal(found.sequences[:, -8:], wanted)


# --------------------------------------------------------------------------------------------------------- refusals


def test_guidance_by_a_second_prompt_is_refused(session_of: Callable[..., it.ITSession]) -> None:
    session = session_of("llama", "core", "left")
    item = Add(at=PLACE, value=VECTOR)
    with pytest.raises(it.AnalysisError, match=r"guidance_scale is 1\.5"):
        generate_with_interventions(
            session.module.backend,
            session.module.it_generate,
            batch_of(session, prompts_of((2,))),
            [item],
            guidance_scale=1.5,
        )


def test_forwards_of_other_rows_are_refused(session: it.ITSession) -> None:
    prompts = prompts_of((2, 2, 2))
    other = torch.stack(prompts_of((2, 2)))
    with steered(session, prompts, "all") as inputs:
        session.module(input_ids=inputs.tokens, attention_mask=inputs.attention_mask)
        with pytest.raises(it.AnalysisError, match="called with 2 rows.*a batch of 3"):
            session.module(input_ids=other, attention_mask=torch.ones_like(other))


def test_a_patch_has_no_values_for_generated_tokens(session: it.ITSession) -> None:
    item = Patch(at=PLACE, source=torch.ones(1, 2, 32))
    with pytest.raises(it.AnalysisError, match="no position 2"):
        generate_with_interventions(
            session.module.backend, session.module.it_generate, batch_of(session, prompts_of((2,))), [item],
            **options_of(session)
        )  # fmt: skip


def test_a_block_called_alone_is_refused(session_of: Callable[..., it.ITSession]) -> None:
    session = session_of("llama", "core", "left")
    layer = session.module.model.model.norm
    inputs = ModelInputs.from_batch(batch_of(session, prompts_of((2,))))
    items = [Add(at="final_norm", value=VECTOR)]
    with interventions_in_place(session.module.backend, inputs, items):
        session.module.model.model(input_ids=inputs.tokens)  # a model within the model may be called in its place
        with pytest.raises(it.AnalysisError, match="outside of a call of the model"):
            layer(torch.ones(1, 2, 32))


def test_a_call_that_fails_leaves_the_next_one_right(session: it.ITSession) -> None:
    prompts = prompts_of((1,))
    wanted = by_hand(prompts[0], added("answer", prompts[0]))
    for error in (ValueError, KeyboardInterrupt):

        def fail(*_: Any, error: type[BaseException] = error) -> None:
            raise error

        with steered(session, prompts, "answer") as inputs:
            batch = {"input_ids": inputs.tokens, "attention_mask": inputs.attention_mask}
            with session.module.backend.hooked({"blocks.2.hook_resid_post": fail}), pytest.raises(error):
                session.module(**batch)
            found = session.module.it_generate(batch, **options_of(session))
            assert torch.equal(found.sequences[:, -NEW:], wanted)


@pytest.mark.parametrize("stack", [stack for stack in STACKS if stack != "core"])
def test_options_that_a_model_does_not_know_are_refused(session_of: Callable[..., it.ITSession], stack: str) -> None:
    session = session_of("llama", stack, "left")
    with pytest.raises(it.ConfigurationError, match="cannot generate with num_beams"):
        session.module.it_generate(batch_of(session, prompts_of((2,))), num_beams=2)
