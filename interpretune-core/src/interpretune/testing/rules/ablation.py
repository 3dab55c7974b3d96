"""Rules of ablation: what is computed for many latents at once is what a forward for each gives."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs, Points
from interpretune.latents.latent_model import activation_name
from interpretune.replay.rows import LatentRows
from interpretune.testing import reference
from interpretune.testing.comparing import same
from interpretune.testing.places import latents
from interpretune.testing.rule import RuleSkipped, expect, rule
from interpretune.testing.workbench import Bench

EVERY = 3
"""Every third latent is ablated."""


@rule(stack=True, capabilities=["ablation"], after=["splicing-agrees"])
@torch.no_grad()
def ablation_agrees(bench: Bench) -> None:
    """Logits with latents ablated, alone or together, are those of a forward of the plain model for each."""
    models, inputs = latents(bench), ModelInputs.from_batch(bench.even_batch())
    device = inputs.tokens.device
    prefill = _prefill(bench, inputs)
    wanted = [reference.spliced_run(bench.reference, models, row, bench.special) for row in bench.even_rows]
    same(prefill.logits, torch.stack([row[0] for row in wanted]), "clean logits of a prefill")
    for item in models:
        name = activation_name(item)
        same(prefill.latents[name], torch.stack([row[1][name][-1] for row in wanted]), f"latents {name} of a prefill")
        pairs = [(i, latent) for i in range(len(inputs)) for latent in range(0, item.d_sae, EVERY)]
        found = bench.backend.ablate(prefill, LatentRows.single(name, torch.tensor(pairs, device=device)))
        expected = torch.stack([_naive(bench, models, i, {name: {latent: 0.0}}) for i, latent in pairs])
        same(found, expected, f"logits with single latents of {name} ablated")
        together = LatentRows.sets(
            name, torch.tensor([0, 1], device=device), [torch.tensor([0, 3, 6], device=device)] * 2, 0.5
        )
        changes = {name: {0: 0.5, 3: 0.5, 6: 0.5}}
        expected = torch.stack([_naive(bench, models, i, changes) for i in range(2)])
        same(bench.backend.ablate(prefill, together), expected, f"logits with three latents of {name} set to 0.5")


@rule(stack=True, capabilities=["ablation"], after=["ablation-agrees"])
@torch.no_grad()
def ablation_at_other_points(bench: Bench) -> None:
    """Ablations at other tokens than the answer are those of the plain model."""
    models, inputs = latents(bench), ModelInputs.from_batch(bench.even_batch())
    device = inputs.tokens.device
    positions = [inputs.tokens.shape[1] - 3, inputs.tokens.shape[1] - 2]
    points = Points(torch.tensor([0, 1], device=device), torch.tensor(positions, device=device))
    prefill = _prefill(bench, inputs, points)
    item = models[-1]
    name = activation_name(item)
    pairs = [(i, latent) for i in range(2) for latent in range(0, item.d_sae, EVERY)]
    found = bench.backend.ablate(prefill, LatentRows.single(name, torch.tensor(pairs, device=device)))
    expected = torch.stack([_naive(bench, models, i, {name: {latent: 0.0}}, positions[i]) for i, latent in pairs])
    same(found, expected, f"logits at other tokens with single latents of {name} ablated")


@rule(capabilities=["ablation"], after=["nothing-global-changes", "ablation-agrees", "padding-backend"])
@torch.no_grad()
def replays_are_trusted(bench: Bench) -> None:
    """A backend that replays single tokens gives what whole forwards give, so that its self-check trusts it."""
    from interpretune.activations.hooked_model import HookedModel

    if type(bench.backend).create_replay is HookedModel.create_replay:
        raise RuleSkipped("the backend has no replay: ablations take a forward for each row")
    inputs = ModelInputs.from_batch(bench.padded(bench.rows, "left"))
    backend = bench.new_session().module.backend
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prefill = backend.prefill(inputs, latents(bench))
    expect(
        prefill.kept is not None,
        f"replays are refused: {'; '.join(str(item.message) for item in caught) or 'without a word'}",
        "replays of this tiny model, or no create_replay",
    )


def _prefill(bench: Bench, inputs: ModelInputs, points: Points | None = None) -> Any:
    """A prefill; a backend's replay that the self-check refuses is the matter of another rule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bench.backend.prefill(inputs, latents(bench), points)


def _naive(
    bench: Bench, models: list[Any], row: int, changes: dict[str, dict[int, float]], position: int = -1
) -> Tensor:
    return reference.ablated_logits(bench.reference, models, bench.even_rows[row], bench.special, changes, position)
