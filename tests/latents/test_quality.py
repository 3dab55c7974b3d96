"""Quality of latent models against the same figures computed row by row without padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import interpretune as it
from interpretune.analysis import measure_latent_quality
from tests.sessions import STACKS, plain_model, unpadded_rows
from tests.tiny_latents import (
    FixedDictionary,
    RandomDictionary,
    activations_of,
    hooked,
    splice_hooks,
    unspliced,
)

CASES = [*zip(("gpt2", "llama", "gpt2"), STACKS, strict=False), ("llama", "core")]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def kind(case: tuple[str, str]) -> str:
    return case[0]


@pytest.fixture
def session(case: tuple[str, str], session_of: Callable[..., it.ITSession]) -> it.ITSession:
    return session_of(*case, "right" if case[0] == "gpt2" else "left")


def measured(session: it.ITSession, *latent_models: Any) -> list[Any]:
    return measure_latent_quality(session.module.backend, latent_models, session.datamodule.test_dataloader())


class Reference:
    """Sums over rows, one at a time."""

    def __init__(self, model: Any, session: it.ITSession, item: Any) -> None:
        tokenizer = session.datamodule.tokenizer
        special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
        losses: list[list[Tensor]] = [[], [], []]
        seen: dict[str, list[Tensor]] = {"target": [], "output": [], "latents": [], "at_answer": []}
        for tokens, _ in unpadded_rows(session):
            spliced = ~unspliced(tokens, special) if item.skips_special_tokens else torch.ones(len(tokens)).bool()
            held: dict[str, Tensor] = {}

            def see(name: str, held: dict[str, Tensor] = held) -> Any:
                return lambda x: held.setdefault(name, x)

            def zero(x: Tensor, spliced: Tensor = spliced) -> Tensor:
                return torch.where(spliced.reshape(1, -1, 1), torch.zeros_like(x), x)

            looks = [(item.hook_point, see("in")), (item.output_hook_point, see("out"))]
            splices = splice_hooks([item], tokens, special, lambda _, latents: latents)
            for kept, hooks in zip(losses, (looks, splices, [(item.output_hook_point, zero)]), strict=True):
                with hooked(model, hooks), torch.no_grad():
                    logits = model(input_ids=tokens.unsqueeze(0)).logits[0]
                kept.append(functional.cross_entropy(logits[:-1], tokens[1:], reduction="none"))
            latents = item.encode(held["in"])[0].detach()
            seen["target"].append(held["out"][0][spliced])
            seen["output"].append(item.decode(latents)[spliced].detach())
            seen["latents"].append(latents[spliced])
            seen["at_answer"].append(latents[-1:])
        target, output, latents, at_answer = (torch.cat(values).double() for values in seen.values())
        self.clean, self.spliced, self.zeroed = (torch.cat(kept).double().mean().item() for kept in losses)
        self.explained = (1 - (target - output).square().sum() / (target - target.mean(0)).square().sum()).item()
        self.l0 = (latents > 0).sum(-1).double().mean().item()
        self.answer_l0 = (at_answer > 0).sum(-1).double().mean().item()
        self.never = (~(latents > 0).any(0)).double().mean().item()
        self.tokens = len(target)


@pytest.mark.parametrize(
    "item",
    [
        RandomDictionary("blocks.1.hook_resid_post", seed=3, d_sae=50),
        RandomDictionary("blocks.1.hook_resid_post", seed=3, d_sae=50, skips=True),
        RandomDictionary("blocks.0.hook_resid_pre", output="blocks.0.hook_mlp_out", seed=4, skips=True),
        RandomDictionary("blocks.2.attn.hook_z", seed=5),
    ],
    ids=lambda item: f"{activations_of(item)}-{item.skips_special_tokens}",
)
def test_figures_are_those_of_unpadded_rows(session: it.ITSession, kind: str, item: RandomDictionary) -> None:
    (found,) = measured(session, item)
    wanted = Reference(plain_model(kind), session, item)
    assert found.name == activations_of(item)
    assert found.tokens == wanted.tokens
    assert found.loss_clean == pytest.approx(wanted.clean, abs=1e-4)
    assert found.loss_spliced == pytest.approx(wanted.spliced, abs=1e-4)
    assert found.loss_zeroed == pytest.approx(wanted.zeroed, abs=1e-4)
    assert abs(wanted.zeroed - wanted.clean) > 0.02
    recovered = (wanted.zeroed - wanted.spliced) / (wanted.zeroed - wanted.clean)
    assert found.loss_recovered == pytest.approx(recovered, abs=0.02 * max(1, abs(recovered)))
    assert found.explained_variance == pytest.approx(wanted.explained, abs=1e-4)
    assert found.l0 == pytest.approx(wanted.l0, abs=1e-3)
    assert found.answer_l0 == pytest.approx(wanted.answer_l0, abs=1e-3)
    assert found.never_active == pytest.approx(wanted.never, abs=1e-6)


@pytest.mark.parametrize("skips", [False, True])
def test_identity_recovers_everything_and_zero_nothing(session: it.ITSession, skips: bool) -> None:
    place = "blocks.1.hook_resid_post"
    identity, zero = (
        measured(session, FixedDictionary(place, skips=skips)),
        measured(session, FixedDictionary(place, zero=True, skips=skips)),
    )
    assert identity[0].loss_recovered == pytest.approx(1.0, abs=1e-4)
    assert identity[0].explained_variance == pytest.approx(1.0, abs=1e-6)
    assert identity[0].l0 == pytest.approx(32, abs=0.01)  # each coordinate is positive or negative
    assert zero[0].loss_recovered == pytest.approx(0.0, abs=1e-6)
    assert zero[0].loss_zeroed == pytest.approx(zero[0].loss_spliced)
    assert abs(zero[0].loss_zeroed - zero[0].loss_clean) > 0.02


def test_each_latent_model_is_measured_alone(session: it.ITSession) -> None:
    lower, upper = (
        RandomDictionary("blocks.0.hook_resid_post", seed=3),
        RandomDictionary("blocks.2.hook_mlp_out", seed=4),
    )
    together = measured(session, lower, upper)
    assert together == [*measured(session, lower), *measured(session, upper)]
