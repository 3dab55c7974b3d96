"""Ablation of chosen rows, and what analyses leave behind: nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune import AnalysisError, HookPointError
from interpretune.analysis import AnalysisCfg, AnalysisMode, LatentRows, ModelInputs, ablate as run_rows, run_analysis
from interpretune.analysis.runner import analysis_step
from tests.sessions import STACKS, padded, plain_model, unpadded_rows
from tests.tiny_latents import RandomDictionary, activations_of, last_logits, splice_hooks

LATENTS = [
    RandomDictionary("blocks.0.hook_resid_post", seed=1),
    RandomDictionary("blocks.2.hook_mlp_out", seed=2, d_sae=30),
]
LOWER, UPPER = map(activations_of, LATENTS)
ROWS = torch.tensor([[3, 6], [0, 22], [3, 2], [1, 5], [0, 22], [2, 4]])
"""In no order, with one repeated; the last latent is active in neither dictionary."""


on_every_stack = pytest.mark.parametrize("stack", STACKS)


@pytest.fixture
def stack() -> str:
    """Where it makes no difference, for tests that do not choose it."""
    return "core"


@pytest.fixture
def session(stack: str, session_of: Callable[..., it.ITSession]) -> it.ITSession:
    session = session_of("llama", stack, "left")
    session.module.latent_models = LATENTS
    return session


@pytest.fixture
def inputs(session: it.ITSession) -> ModelInputs:
    rows = [tokens for tokens, _ in unpadded_rows(session)][:4]
    return ModelInputs.from_batch(padded(rows, "right", session.datamodule.tokenizer.pad_token_id))


def ablate(
    session: it.ITSession, inputs: ModelInputs, rows: Tensor = ROWS, name: str = LOWER, **options: Any
) -> Tensor:
    prefill = session.module.backend.prefill(inputs, LATENTS)
    assert prefill.kept is not None
    return run_rows(prefill, LatentRows.single(name, rows), **options)


NAIVE: dict[str, Tensor] = {}


def naive(session: it.ITSession, name: str) -> Tensor:
    """One whole forward of the unpadded example for each row of ``ROWS``; the same rows in every session."""
    if name in NAIVE:
        return NAIVE[name]
    model, tokens = plain_model("llama"), [tokens for tokens, _ in unpadded_rows(session)]
    results = []
    for example, latent in ROWS.tolist():

        def zero(item: Any, latents: Tensor, latent: int = latent) -> Tensor:
            if activations_of(item) == name:
                latents[0, -1, latent] = 0
            return latents

        with torch.no_grad():
            results.append(last_logits(model, tokens[example], splice_hooks(LATENTS, tokens[example], (), zero)))
    return NAIVE.setdefault(name, torch.stack(results))


@pytest.mark.parametrize(
    ("budget", "name", "plain_loop", "stack"),
    [
        (1, UPPER, False, "core"),
        (100, UPPER, False, "core"),
        (None, LOWER, True, "core"),
        *((2, LOWER, False, stack) for stack in STACKS),
        *((None, LOWER, False, stack) for stack in STACKS),
        *((2, UPPER, True, stack) for stack in STACKS),
    ],
)
def test_any_row_budget_gives_the_naive_logits_in_order_twice(
    session: it.ITSession, inputs: ModelInputs, budget: int | None, name: str, plain_loop: bool
) -> None:
    wanted = naive(session, name)
    for _ in range(2):
        found = ablate(session, inputs, name=name, row_budget=budget, naive=plain_loop)
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)
    assert (wanted[0] - wanted[2]).abs().max() > 1e-2  # the same example, another latent


@on_every_stack
def test_columns_choose_logits(session: it.ITSession, inputs: ModelInputs) -> None:
    columns = torch.tensor([5, 3, 90])
    torch.testing.assert_close(ablate(session, inputs, columns=columns), ablate(session, inputs)[:, columns])


def test_no_rows_give_no_logits(session: it.ITSession, inputs: ModelInputs) -> None:
    nothing = torch.empty(0, 2, dtype=torch.long)
    width = len(session.datamodule.tokenizer)
    assert ablate(session, inputs, nothing).shape == (0, width)
    assert ablate(session, inputs, nothing, columns=torch.tensor([1, 2])).shape == (0, 2)


@pytest.mark.parametrize("row", [[4, 0], [0, 24], [-1, 0], [0, -1]])
def test_rows_beyond_the_batch_or_the_dictionary_are_refused(
    session: it.ITSession, inputs: ModelInputs, row: list[int]
) -> None:
    with pytest.raises(AnalysisError, match=r"beyond the batch of 4 examples or the 24 latents"):
        ablate(session, inputs, torch.tensor([[0, 1], row]))


def test_a_budget_of_no_rows_is_refused(session: it.ITSession, inputs: ModelInputs) -> None:
    with pytest.raises(AnalysisError, match="row_budget is 0"):
        ablate(session, inputs, row_budget=0)


def test_an_unknown_activation_name_is_refused(session: it.ITSession, inputs: ModelInputs) -> None:
    with pytest.raises(AnalysisError, match=r"blocks\.1\.hook_resid_post\.hook_sae_acts_post"):
        ablate(session, inputs, name="blocks.1.hook_resid_post.hook_sae_acts_post")
    with pytest.raises(HookPointError, match="No spliced latent model"):
        session.module.backend.run_spliced(inputs, LATENTS[:1], record=[UPPER])


# ---------------------------------------------------------------------------------------------------- nothing is left


def torch_hooks(model: torch.nn.Module) -> int:
    return sum(
        len(hooks)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    )


@pytest.fixture
def batches(session: it.ITSession) -> list[dict[str, Tensor]]:
    """Drawn beforehand: a ``DataLoader`` takes a seed from the global generator."""
    return [dict(batch) for batch in session.datamodule.test_dataloader()]


@pytest.fixture
def modes_leave_no_trace(
    session: it.ITSession, inputs: ModelInputs, batches: list[dict[str, Tensor]]
) -> Iterator[None]:
    module = session.module
    parameters = [*module.model.parameters(), *(p for item in LATENTS for p in item.parameters())]
    flags = [i % 2 == 0 for i in range(len(parameters))]
    before_flags = [parameter.requires_grad for parameter in parameters]
    for parameter, flag in zip(parameters, flags, strict=True):
        parameter.requires_grad_(flag)
    with torch.no_grad():
        before = module.backend.forward(inputs, {})
    hooks, random_state, grad_mode = torch_hooks(module.model), torch.get_rng_state(), torch.is_grad_enabled()
    weights = [parameter.detach().clone() for parameter in parameters]
    yield
    assert torch.is_grad_enabled() is grad_mode
    assert [parameter.requires_grad for parameter in parameters] == flags
    assert all(parameter.grad is None for parameter in parameters)
    assert all(torch.equal(p, saved) for p, saved in zip(parameters, weights, strict=True))
    assert torch_hooks(module.model) == hooks
    assert torch.equal(torch.get_rng_state(), random_state)
    with torch.no_grad():
        torch.testing.assert_close(module.backend.forward(inputs, {}), before, rtol=0, atol=0)
    for parameter, flag in zip(parameters, before_flags, strict=True):
        parameter.requires_grad_(flag)


@pytest.mark.usefixtures("modes_leave_no_trace")
@pytest.mark.parametrize(
    ("mode", "stack"),
    [*((mode, "core") for mode in AnalysisMode), *((AnalysisMode.ablation, stack) for stack in STACKS[1:])],
)
def test_a_mode_leaves_the_model_as_it_was_and_repeats_itself(
    session: it.ITSession, batches: list[dict[str, Tensor]], mode: AnalysisMode
) -> None:
    caches = []
    for _ in range(2):
        cfg = AnalysisCfg(mode=mode)
        for i, batch in enumerate(batches):
            analysis_step(session.module, dict(batch), i, cfg)
        caches.append(cfg.analysis_cache)
    first, second = caches
    for one, other in zip(first.logit_diffs, second.logit_diffs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for one, other in zip(first.effects, second.effects, strict=True):
        for name in one:
            torch.testing.assert_close(one[name].values, other[name].values, rtol=0, atol=0)
    assert not any(diffs.requires_grad for diffs in first.logit_diffs)


@on_every_stack
@pytest.mark.usefixtures("modes_leave_no_trace")
def test_a_failing_analysis_leaves_the_model_as_it_was(session: it.ITSession, inputs: ModelInputs) -> None:
    def fail(_: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        session.module.backend.run_spliced(inputs, LATENTS, {UPPER: fail})
    with pytest.raises(ZeroDivisionError):
        session.module.backend.gradients(inputs, LATENTS, fail, [LOWER])


@on_every_stack
@pytest.mark.usefixtures("modes_leave_no_trace")
def test_capturing_activations_ends_early_and_leaves_the_model_as_it_was(
    session: it.ITSession, inputs: ModelInputs
) -> None:
    names = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"]
    beyond: list[str] = []
    final_norm = next(m for n, m in session.module.model.named_modules() if n.split(".")[-1] in ("norm", "ln_final"))
    session.module.backend.check_hook_points(names)  # proves them by a whole forward
    handle = final_norm.register_forward_hook(lambda *_: beyond.append("ran"))
    captured = session.module.backend.capture(inputs, names)
    handle.remove()
    assert not beyond
    _, cached = session.module.backend.run_with_cache(inputs, names)
    for name in names:
        torch.testing.assert_close(captured[name], cached[name], rtol=0, atol=0)


@on_every_stack
@pytest.mark.parametrize("outside", [True, False])
def test_attribution_works_whatever_the_grad_mode_outside(session: it.ITSession, outside: bool) -> None:
    with torch.set_grad_enabled(outside):
        cache = run_analysis(
            session.module, session.datamodule, AnalysisCfg(mode=AnalysisMode.attr_patching), limit_batches=1
        )
        assert torch.is_grad_enabled() is outside
    assert cache.effects[0][LOWER].values.abs().max() > 0.1


@on_every_stack
def test_a_dictionary_of_another_dtype_is_converted(session: it.ITSession, inputs: ModelInputs) -> None:
    """Reconstructions return to the model's dtype, whatever the dictionary computes in."""

    class Halved(RandomDictionary):
        def encode(self, activations: Tensor) -> Tensor:
            return super().encode(activations).double()

        def decode(self, latents: Tensor) -> Tensor:
            return super().decode(latents.float()).double()

    plain, double = RandomDictionary("blocks.1.hook_resid_post", seed=3), Halved("blocks.1.hook_resid_post", seed=3)
    one, other = (session.module.backend.run_spliced(inputs, [item]).answer_logits for item in (plain, double))
    torch.testing.assert_close(one, other)
