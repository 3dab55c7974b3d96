"""The rule of weights that change: whatever was computed before is computed anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.testing.backend_runs import results_of
from interpretune.testing.comparing import same
from interpretune.testing.hook_points import latents
from interpretune.testing.rule import expect, rule
from interpretune.testing.workbench import Bench

STEP = 0.1
"""Size of a step beside that of a parameter."""

OF_LATENT_MODELS = ("logits of a spliced run", "logits of an ablation", "logits of a prefill")


@rule(stack=True, after=["no-hooks-left", "cache-is-a-copy"])
def nothing_stale_after_a_step(bench: Bench) -> None:
    """After a step of training the same batch gives what the new weights give, not what was kept from before."""
    used, models = bench.new_session().module, latents(bench)
    before = _results(bench, used, models)
    _step(used.model.parameters())
    after = _results(bench, used, models)
    _expect_other("logits", before, after, "a step of training")
    fresh = bench.new_session().module  # it has run nothing
    _step(fresh.model.parameters())
    for what, wanted in _results(bench, fresh, models).items():
        same(after[what], wanted, f"{what}, of a batch that was run before a step of training and after it")
    _step(buffer for item in models for buffer in item.buffers())
    spliced = {what: value for what, value in after.items() if any(word in what for word in OF_LATENT_MODELS)}
    _expect_other("", spliced, _results(bench, used, models), "a step of the latent models")


def _results(bench: Bench, module: Any, models: Sequence[Any]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {what: value.clone() for what, value in results_of(bench, module, models)}


def _expect_other(kind: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor], step: str) -> None:
    stale = [what for what, value in before.items() if what.startswith(kind) and torch.equal(value, after[what])]
    expect(not stale, f"{', '.join(stale[:3])}: after {step} as before it", "what the new weights give")


def _step(parameters: Iterable[Tensor]) -> None:
    """One step of an optimizer, the same for models of the same parameters."""
    stepped = list(parameters)
    draw = torch.Generator().manual_seed(0)
    for parameter in stepped:
        size = parameter.detach().abs().mean().cpu()
        parameter.grad = (size * torch.randn(parameter.shape, generator=draw)).to(parameter)
    torch.optim.SGD(stepped, lr=STEP).step()
    for parameter in stepped:
        parameter.grad = None
