"""Rules of interventions, in a forward and while a model generates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.backends.interventions import (
    Add,
    Intervention,
    Patch,
    ProjectOut,
    Scale,
    SetTo,
    generate_with_interventions,
    run_with_interventions,
)
from interpretune.latents.latent_model import activation_name
from interpretune.testing import reference
from interpretune.testing.comparing import same
from interpretune.testing.places import latents
from interpretune.testing.rule import rule
from interpretune.testing.workbench import Bench

NEW_TOKENS = 3


@rule(stack=True, capabilities=["interventions"], after=["edits-are-made", "splicing-agrees"])
@torch.no_grad()
def interventions_agree(bench: Bench) -> None:
    """Every kind of intervention, at every kind of position, gives the logits of the plain model with that change."""
    inputs = ModelInputs.from_batch(bench.even_batch())
    length, place = inputs.tokens.shape[1], latents(bench)[1].hook_point
    direction = torch.linspace(-1, 1, bench.width)
    source = bench.backend.run_with_cache(inputs, [place])[1][place].flip(0)
    mask = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
    mask[:, 1::3] = True
    at: dict[str, tuple[object, list[int]]] = {
        "all": ("all", list(range(length))),
        "answer": ("answer", [length - 1]),
        "a position for each row": (torch.full((len(inputs),), 2, device=mask.device), [2]),
        "a mask": (mask, list(range(1, length, 3))),
    }
    kinds: dict[str, tuple[Callable[..., Intervention], Callable[[Tensor, int], Tensor]]] = {
        "SetTo": (lambda **to: SetTo(value=direction, **to), lambda x, row: direction.expand_as(x)),
        "Add": (lambda **to: Add(value=direction, scale=2.0, **to), lambda x, row: x + 2 * direction),
        "Scale": (lambda **to: Scale(factor=0.0, **to), lambda x, row: 0 * x),
        "ProjectOut": (
            lambda **to: ProjectOut(direction=direction, **to),
            lambda x, row: x - (x @ direction).unsqueeze(-1) * direction / direction.square().sum(),
        ),
        "Patch": (lambda **to: Patch(source=source, **to), lambda x, row: source[row].to(x).unsqueeze(0)),
    }
    for kind, (make, change) in kinds.items():
        for where, (positions, chosen) in at.items():
            found = run_with_interventions(bench.backend, inputs, [make(at=place, positions=positions)])
            wanted = []
            for i, row in enumerate(bench.even_rows):

                def edit(x: Tensor, i: int = i) -> Tensor:
                    changed = x.clone()
                    changed[:, chosen] = change(x, i)[:, chosen]  # noqa: B023
                    return changed

                wanted.append(reference.logits_of(bench.reference, row, [(place, edit)])[-1])
            same(found, torch.stack(wanted), f"logits with {kind} at {place}, positions: {where}")


@rule(stack=True, capabilities=["interventions", "splice"], after=["interventions-agree"])
@torch.no_grad()
def latent_interventions_agree(bench: Bench) -> None:
    """Interventions at chosen latents of a spliced latent model give the logits of the plain model with that change."""
    models, inputs = latents(bench), ModelInputs.from_batch(bench.even_batch())
    target = models[1]
    name, chosen = activation_name(target), [1, 4]
    found = run_with_interventions(
        bench.backend, inputs, [SetTo(at=name, value=2.0, latents=chosen, positions="answer")], models
    )
    changes = {name: dict.fromkeys(chosen, 2.0)}
    wanted = [reference.ablated_logits(bench.reference, models, row, bench.special, changes) for row in bench.even_rows]
    same(found, torch.stack(wanted), f"logits with two latents of {name} set to 2")


@rule(stack=True, capabilities=["interventions"], after=["interventions-agree", "generation-agrees"])
@torch.no_grad()
def steered_generation_agrees(bench: Bench) -> None:
    """Generation under an intervention gives the logits of a loop over the plain model with that change."""
    place, direction = latents(bench)[1].hook_point, torch.linspace(-1, 1, bench.width)
    batch = bench.even_batch()
    prompt = batch["input_ids"].shape[1]
    for positions in ("all", "answer", "generated"):
        result = generate_with_interventions(
            bench.module,
            batch,
            [Add(at=place, value=direction, positions=positions)],
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        for i, row in enumerate(bench.even_rows):
            for step, logits in enumerate(result.logits):
                tokens = torch.cat([row, result.sequences[i, prompt : prompt + step].cpu()])

                def steer(x: Tensor, positions: str = positions) -> Tensor:
                    changed = x.clone()
                    where = {"all": slice(None), "answer": slice(prompt - 1, prompt), "generated": slice(prompt, None)}
                    changed[:, where[positions]] += direction
                    return changed

                wanted = reference.logits_of(bench.reference, tokens, [(place, steer)])[-1]
                same(logits[i], wanted, f"logits of new token {step} of row {i}, steered at {positions!r}")
                eos = bench.session.datamodule.tokenizer.eos_token_id
                if int(result.sequences[i, prompt + step]) == eos:
                    break
