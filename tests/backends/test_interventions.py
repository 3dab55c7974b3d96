"""Interventions against hand-written hooks, in all backends, in a forward and in generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune import AnalysisError, HookPointError
from interpretune.analysis import (
    Add,
    HuggingFaceBackend,
    Intervention,
    ModelInputs,
    Patch,
    ProjectOut,
    Scale,
    SetTo,
    generate_with_interventions,
    interventions_in_place,
    run_with_interventions,
)
from tests.sessions import STACKS, padded, plain_model, unpadded_rows
from tests.tiny_latents import RandomDictionary, activations_of, hooked

PLACE = "blocks.1.hook_resid_post"
DRAW = torch.Generator().manual_seed(0)
VECTOR = torch.randn(32, generator=DRAW)
LATENTS = RandomDictionary("blocks.1.hook_resid_post", seed=1)


@pytest.fixture(params=STACKS)
def session(request: pytest.FixtureRequest, session_of: Callable[..., it.ITSession]) -> it.ITSession:
    return session_of("llama", request.param, "left")


def tokens_of(session: it.ITSession) -> list[Tensor]:
    return [tokens for tokens, _ in unpadded_rows(session)][:3]


def inputs_of(session: it.ITSession, side: str = "left") -> ModelInputs:
    return ModelInputs.from_batch(padded(tokens_of(session), side, session.datamodule.tokenizer.pad_token_id))


def by_hand(session: it.ITSession, change: Callable[[Tensor], Tensor], place: str = PLACE) -> Tensor:
    """Logits after the last token of each unpadded row, with ``change`` made to its activations ``[1, pos, d]``."""
    model = plain_model("llama")
    with torch.no_grad(), hooked(model, [(place, change)]):
        rows = [model(input_ids=tokens.unsqueeze(0)).logits[0, -1] for tokens in tokens_of(session)]
    return torch.stack(rows)


def at_last(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        return torch.cat([x[:, :-1], change(x[:, -1:])], dim=1)

    return apply


def out(x: Tensor) -> Tensor:
    return x - (x @ VECTOR).unsqueeze(-1) * VECTOR / VECTOR.square().sum()


CHANGES: dict[str, tuple[Callable[..., Intervention], Callable[[Tensor], Tensor]]] = {
    "set": (lambda **at: SetTo(value=VECTOR, **at), VECTOR.expand_as),
    "add": (lambda **at: Add(value=VECTOR, scale=-2.0, **at), lambda x: x - 2 * VECTOR),
    "scale": (lambda **at: Scale(factor=0.5, **at), lambda x: x * 0.5),
    "project": (lambda **at: ProjectOut(direction=VECTOR, **at), out),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["all", "answer"])
@pytest.mark.parametrize("kind", CHANGES)
def test_changes_at_a_hook_point_equal_hooks_by_hand(
    session: it.ITSession, kind: str, positions: str, side: str
) -> None:
    make, change = CHANGES[kind]
    wanted = by_hand(session, change if positions == "all" else at_last(change))
    backend, inputs = session.module.backend, inputs_of(session, side)
    with torch.no_grad():
        found = run_with_interventions(backend, inputs, [make(at=PLACE, positions=positions)])
        clean = backend.run(inputs)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)
    assert (found - clean).abs().max() > 0.1


def test_positions_by_row_and_by_mask_are_those_of_the_batch(session: it.ITSession) -> None:
    backend, inputs = session.module.backend, inputs_of(session)
    answers = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
    answers[:, -1] = True
    with torch.no_grad():
        named, rows, mask = (
            run_with_interventions(backend, inputs, [Scale(at=PLACE, factor=0.0, positions=where)])
            for where in ("answer", inputs.answer_positions, answers)
        )
    assert torch.equal(named, rows)
    assert torch.equal(named, mask)


def test_patching_everything_gives_the_other_run(session: it.ITSession) -> None:
    backend, inputs = session.module.backend, inputs_of(session)
    other = ModelInputs(inputs.tokens.flip(1).roll(1, 0), torch.ones_like(inputs.attention_mask))
    inputs = ModelInputs(inputs.tokens, torch.ones_like(inputs.attention_mask))
    with torch.no_grad():
        logits, cache = backend.run_with_cache(other, [PLACE])
        found = run_with_interventions(backend, inputs, [Patch(at=PLACE, source=cache[PLACE])])
        assert (backend.run(inputs) - logits).abs().max() > 0.1
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


def test_a_change_does_not_write_into_what_a_block_returned() -> None:
    """Whose own hook keeps that, has it unchanged."""
    model, kept = plain_model("llama"), []
    keep = model.model.layers[1].register_forward_hook(lambda _, __, output: kept.append(output))
    backend, inputs = HuggingFaceBackend(model), ModelInputs(torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.long))
    with torch.no_grad():
        backend.run(inputs)
        run_with_interventions(backend, inputs, [Scale(at=PLACE, factor=0.0)])
    keep.remove()
    assert torch.equal(kept[0], kept[-1])


def test_latents_are_set_where_a_latent_model_is_spliced(session: it.ITSession) -> None:
    backend, inputs = session.module.backend, inputs_of(session)
    name = activations_of(LATENTS)

    def change(x: Tensor) -> Tensor:
        latents = LATENTS.encode(x)
        latents[..., [2, 5]] = 3.0
        return LATENTS.decode(latents)

    with torch.no_grad():
        wanted = by_hand(session, change)
        found = run_with_interventions(
            backend, inputs, [SetTo(at=name, value=3.0, latents=[2, 5])], latent_models=[LATENTS]
        )
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)


def test_changes_at_one_place_are_made_in_turn(session: it.ITSession) -> None:
    backend, inputs = session.module.backend, inputs_of(session)
    with torch.no_grad():
        found = run_with_interventions(backend, inputs, [Add(at=PLACE, value=VECTOR), Scale(at=PLACE, factor=0.5)])
    torch.testing.assert_close(found, by_hand(session, lambda x: (x + VECTOR) * 0.5), rtol=0, atol=2e-4)


def steered_by_hand(session: it.ITSession, change: Callable[[Tensor], Tensor], new: int) -> Tensor:
    """Greedy tokens of every row, each forward on the whole row so far; ``change`` is made to all of it."""
    model, rows = plain_model("llama"), []
    with torch.no_grad(), hooked(model, [(PLACE, change)]):
        for tokens in tokens_of(session):
            for _ in range(new):
                following = model(input_ids=tokens.unsqueeze(0)).logits[0, -1].argmax()
                tokens = torch.cat([tokens, following.reshape(1)])
            rows.append(tokens[-new:])
    return torch.stack(rows)


@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
def test_generation_is_steered_at_every_token_that_is_named(session: it.ITSession, where: str) -> None:
    sizes = [len(tokens) for tokens in tokens_of(session)]
    row = iter(size for size in sizes for _ in range(4))

    def change(x: Tensor) -> Tensor:
        prompt = next(row)
        changed = torch.arange(x.shape[1]) < prompt if where != "generated" else torch.arange(x.shape[1]) >= prompt
        changed |= torch.tensor(where == "all")
        return torch.where(changed.reshape(1, -1, 1), x + 4 * VECTOR, x)

    batch = padded(tokens_of(session), "right", session.datamodule.tokenizer.pad_token_id)
    wanted = steered_by_hand(session, change, 4)
    found = generate_with_interventions(
        session.module.backend,
        session.module.it_generate,
        batch,
        [Add(at=PLACE, value=VECTOR, scale=4.0, positions=where)],  # type: ignore[arg-type]
        max_new_tokens=4,
        do_sample=False,
        **({"stop_at_eos": False} if "transformer_lens" in session.context.names else {"eos_token_id": None}),
    )
    assert torch.equal(found.sequences[:, -4:], wanted)


def test_latents_are_steered_while_generating(session: it.ITSession) -> None:
    batch = padded(tokens_of(session), "right", session.datamodule.tokenizer.pad_token_id)
    items = [Add(at=activations_of(LATENTS), value=5.0, latents=[3])]
    found = generate_with_interventions(
        session.module.backend, session.module.it_generate, batch, items, [LATENTS], max_new_tokens=1, do_sample=False
    )
    with torch.no_grad():
        logits = run_with_interventions(session.module.backend, ModelInputs.from_batch(batch), items, [LATENTS])
    assert torch.equal(found.sequences[:, -1], logits.argmax(-1))


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "unknown place": (Scale(at="blocks.1.hook_resid_pots", factor=0), HookPointError, r"blocks\.1\.hook_resid_post"),
    "latents that are not spliced": (Scale(at=activations_of(LATENTS), factor=0), HookPointError, "no hook point"),
    "entry out of range": (Scale(at=PLACE, factor=0, latents=[32]), AnalysisError, "there are 32"),
    "width": (Add(at=PLACE, value=torch.ones(31)), AnalysisError, r"expected a number or \[32\]"),
    "zero direction": (ProjectOut(at=PLACE, direction=torch.zeros(32)), AnalysisError, "is zero"),
    "position": (Scale(at=PLACE, factor=0, positions=torch.tensor([0, 0, 99])), AnalysisError, "go beyond"),
    "positions' shape": (
        Scale(at=PLACE, factor=0, positions=torch.tensor([0])),
        AnalysisError,
        "one position for each",
    ),
    "source": (Patch(at=PLACE, source=torch.ones(1, 2, 32)), AnalysisError, "source of a patch"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(session: it.ITSession, case: str) -> None:
    item, error, match = BAD[case]
    with pytest.raises(error, match=match), torch.no_grad():
        run_with_interventions(session.module.backend, inputs_of(session), [item])


def test_nothing_stays_on_the_model(session: it.ITSession) -> None:
    backend, inputs = session.module.backend, inputs_of(session)
    with torch.no_grad():
        before = backend.run(inputs)
        with interventions_in_place(backend, inputs, [Scale(at=PLACE, factor=0.0)]):
            assert (backend.run(inputs) - before).abs().max() > 0.1
        assert torch.equal(backend.run(inputs), before)
