"""Rules of latent models in a forward: splicing, gradients, ablation, interventions, and that no hook stays."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs, Points
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
from interpretune.replay.rows import LatentRows
from interpretune.testing import reference
from interpretune.testing.backend_runs import capability_runs
from interpretune.testing.comparing import same
from interpretune.testing.global_state import hooks_on, left_behind
from interpretune.testing.hook_points import crosscoder, edited_logits, latents, offered
from interpretune.testing.rule import RuleSkipped, expect, rule
from interpretune.testing.workbench import Bench


@rule(stack=True, capabilities=["splice"], after=["edits-are-made"])
@torch.no_grad()
def splicing_agrees(bench: Bench) -> None:
    """Logits and latents with latent models spliced in are those of the plain model, at every position."""
    found = check_spliced(bench, latents(bench), "logits of a spliced run")
    bare = bench.backend.run(bench.even_inputs())
    expect(not torch.allclose(found, bare), "splicing changes no logit", "logits that it changes")


def check_spliced(bench: Bench, models: Sequence[Any], what: str) -> Tensor:
    """Compare a run with latent models spliced in to that of the plain model; returns its logits ``[batch, vocab]``."""
    names = [activation_name(item) for item in models]
    found = bench.backend.run_spliced(bench.even_inputs(), models, record=names)
    wanted = [reference.spliced_run(bench.reference, models, row, bench.special) for row in bench.even_rows]
    for name in names:
        expect(name in found.activations, f"no activations {name} were recorded", "those of every latent model")
        same(found.activations[name], torch.stack([row[1][name] for row in wanted]), f"latents {name}")
    logits: Tensor = found.answer_logits
    same(logits, torch.stack([row[0] for row in wanted]), what)
    return logits


@rule(stack=True, capabilities=["splice"], after=["splicing-agrees"])
@torch.no_grad()
def crosscoders_read_before_they_write(bench: Bench) -> None:
    """A latent model that reads and writes the residual stream after two blocks is encoded by a run of its own."""
    check_spliced(bench, [crosscoder(bench)], "logits with a crosscoder spliced in")


@rule(stack=True, capabilities=["splice"], after=["splicing-agrees"])
@torch.no_grad()
def latent_edits_agree(bench: Bench) -> None:
    """Edits of latents, at the first token too, change the logits as they change those of the plain model."""
    models, inputs = latents(bench), bench.even_inputs()
    cases = [(item, position) for item in models for position in (0, 2, inputs.tokens.shape[1] - 1)]

    def changed(latents: Tensor, row: int | slice, position: int) -> Tensor:
        latents = latents.clone()
        latents[row, position, :5] += 1.0
        return latents

    def edit(which: Any, latents: Tensor) -> Tensor:
        for i, (item, position) in enumerate(cases):
            latents = changed(latents, i, position) if which is item else latents
        return latents

    copies = [row.repeat(len(cases), 1) for row in bench.even_rows]
    splices = [reference.splice_hooks(bench.reference, models, rows, bench.special, edit) for rows in copies]
    wanted = [reference.logits_of(bench.reference, *given)[:, -1] for given in zip(copies, splices, strict=True)]
    for (item, position), expected in zip(cases, torch.stack(wanted, dim=1), strict=True):
        name, one = activation_name(item), functools.partial(changed, row=slice(None), position=position)
        found = bench.backend.run_spliced(inputs, models, {name: one}).answer_logits
        same(found, expected, f"logits with latents {name} changed at position {position}")


@rule(stack=True, capabilities=["gradients"], after=["splicing-agrees", "gradients-at-every-hook-point"])
def gradients_agree(bench: Bench) -> None:
    """Gradients at latents are those of the plain model, at every position and through the latent models above."""
    models, inputs = latents(bench), bench.even_inputs()
    names = [activation_name(item) for item in models]
    weights = torch.linspace(-1, 1, bench.vocab_size)

    def of_row(logits: Tensor) -> Tensor:
        return logits @ weights.to(logits)

    before = [parameter.requires_grad for parameter in bench.module.parameters()]
    run, found = bench.backend.gradients(inputs, models, lambda logits: of_row(logits).sum(), names)
    after = [parameter.requires_grad for parameter in bench.module.parameters()]
    expect(before == after, "other parameters want gradients than before", "the flags as they were")
    wanted = [reference.spliced_run(bench.reference, models, row, bench.special, of_row) for row in bench.even_rows]
    same(run.answer_logits, torch.stack([row[0] for row in wanted]), "logits of the run with gradients")
    for name in names:
        expected = torch.stack([row[2][name] for row in wanted])
        same(found.get(name), expected, f"gradients at {name}")


EVERY = 3
"""Every third latent is ablated."""


@rule(stack=True, capabilities=["ablation"], after=["splicing-agrees"])
@torch.no_grad()
def ablation_agrees(bench: Bench) -> None:
    """Logits with latents ablated, alone or together, are those of a forward of the plain model for each."""
    models, inputs = latents(bench), bench.even_inputs()
    device = inputs.tokens.device
    prefill = _prefill(bench, inputs)
    wanted = [reference.spliced_run(bench.reference, models, row, bench.special) for row in bench.even_rows]
    same(prefill.logits, torch.stack([row[0] for row in wanted]), "clean logits of a prefill")
    for item in models:
        name = activation_name(item)
        same(prefill.latents[name], torch.stack([row[1][name][-1] for row in wanted]), f"latents {name} of a prefill")
        pairs = [(i, latent) for i in range(len(inputs)) for latent in range(0, item.d_sae, EVERY)]
        found = bench.backend.ablate(prefill, LatentRows.single(name, torch.tensor(pairs, device=device)))
        singles = [{name: {latent: 0.0}} for latent in range(0, item.d_sae, EVERY)]
        expected = torch.cat([_naive(bench, models, i, singles) for i in range(len(inputs))])
        same(found, expected, f"logits with single latents of {name} ablated")
        together = LatentRows.sets(
            name, torch.tensor([0, 1], device=device), [torch.tensor([0, 3, 6], device=device)] * 2, 0.5
        )
        changes = {name: {0: 0.5, 3: 0.5, 6: 0.5}}
        expected = torch.cat([_naive(bench, models, i, [changes]) for i in range(2)])
        same(bench.backend.ablate(prefill, together), expected, f"logits with three latents of {name} set to 0.5")


@rule(stack=True, capabilities=["ablation"], after=["ablation-agrees"])
@torch.no_grad()
def ablation_at_other_points(bench: Bench) -> None:
    """Ablations at other tokens than the answer are those of the plain model."""
    models, inputs = latents(bench), bench.even_inputs()
    device = inputs.tokens.device
    positions = [inputs.tokens.shape[1] - 3, inputs.tokens.shape[1] - 2]
    points = Points(torch.tensor([0, 1], device=device), torch.tensor(positions, device=device))
    prefill = _prefill(bench, inputs, points)
    item = models[-1]
    name = activation_name(item)
    pairs = [(i, latent) for i in range(2) for latent in range(0, item.d_sae, EVERY)]
    found = bench.backend.ablate(prefill, LatentRows.single(name, torch.tensor(pairs, device=device)))
    singles = [{name: {latent: 0.0}} for latent in range(0, item.d_sae, EVERY)]
    expected = torch.cat([_naive(bench, models, i, singles, positions[i]) for i in range(2)])
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
    bench: Bench, models: Sequence[Any], row: int, cases: Sequence[reference.LatentChanges], position: int = -1
) -> Tensor:
    return reference.ablated_logits(bench.reference, models, bench.even_rows[row], bench.special, cases, position)


NEW_TOKENS = 3


@rule(stack=True, capabilities=["interventions"], after=["edits-are-made", "splicing-agrees"])
@torch.no_grad()
def interventions_agree(bench: Bench) -> None:
    """Every kind of intervention, at every kind of position, gives the logits of the plain model with that change."""
    inputs = bench.even_inputs()
    length, point = inputs.tokens.shape[1], latents(bench)[1].hook_point
    direction = torch.linspace(-1, 1, bench.width)
    source = bench.backend.run_with_cache(inputs, [point])[1][point].flip(0)
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

    def edit(x: Tensor, change: Callable[[Tensor, int], Tensor], chosen: list[int]) -> Tensor:
        changed = x.clone()
        for row in range(len(x)):
            changed[row, chosen] = change(x[row : row + 1], row)[0, chosen]
        return changed

    cases = [(kind, where) for kind in kinds for where in at]
    edits = [functools.partial(edit, change=kinds[kind][1], chosen=at[where][1]) for kind, where in cases]
    wanted = edited_logits(bench, [[(point, change)] for change in edits])[:, :, -1]
    for (kind, where), expected in zip(cases, wanted, strict=True):
        found = run_with_interventions(bench.backend, inputs, [kinds[kind][0](at=point, positions=at[where][0])])
        same(found, expected, f"logits with {kind} at {point}, positions: {where}")


@rule(stack=True, capabilities=["interventions", "splice"], after=["interventions-agree"])
@torch.no_grad()
def latent_interventions_agree(bench: Bench) -> None:
    """Interventions at chosen latents of a spliced latent model give the logits of the plain model with that change."""
    models, inputs = latents(bench), bench.even_inputs()
    target = models[1]
    name, chosen = activation_name(target), [1, 4]
    found = run_with_interventions(
        bench.backend, inputs, [SetTo(at=name, value=2.0, latents=chosen, positions="answer")], models
    )
    changes = {name: dict.fromkeys(chosen, 2.0)}
    wanted = torch.cat([_naive(bench, models, row, [changes]) for row in range(len(inputs))])
    same(found, wanted, f"logits with two latents of {name} set to 2")


@rule(stack=True, capabilities=["interventions"], after=["interventions-agree", "generation-agrees"])
@torch.no_grad()
def steered_generation_agrees(bench: Bench) -> None:
    """Generation under an intervention gives the logits of a loop over the plain model with that change."""
    point, direction = latents(bench)[1].hook_point, torch.linspace(-1, 1, bench.width)
    batch = bench.even_batch()
    prompt = batch["input_ids"].shape[1]
    for positions in ("all", "answer", "generated"):
        result = generate_with_interventions(
            bench.module.backend,
            bench.module.it_generate,
            batch,
            [Add(at=point, value=direction, positions=positions)],
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

                wanted = reference.logits_of(bench.reference, tokens, [(point, steer)])[-1]
                same(logits[i], wanted, f"logits of new token {step} of row {i}, steered at {positions!r}")
                if int(result.sequences[i, prompt + step]) == bench.eos_token_id:
                    break


@rule(
    stack=True,
    after=["nothing-global-changes", "cache-agrees", "gradients-agree", "ablation-agrees", "interventions-agree"],
)
def no_hooks_left(bench: Bench) -> None:
    """No hook stays on the model after a run of any kind."""
    module = bench.new_session().module  # its own: what is left behind would spoil other rules
    backend, models, inputs = module.backend, latents(bench), bench.even_inputs()
    backend.forward(inputs, {})  # libraries may add hooks of their own in the first forward
    before = hooks_on(module)
    runs: dict[str, Callable[[], Any]] = {
        "a forward": lambda: module(**bench.even_batch()),
        "a generation": lambda: module.it_generate(bench.even_batch(), max_new_tokens=2, do_sample=False),
        "a run with a cache": lambda: backend.run_with_cache(inputs, offered(bench)),
        "a capture": lambda: backend.capture(inputs, offered(bench)[:2]),
        **capability_runs(bench, module, models, offered(bench)[3]),
    }
    for what, run in runs.items():
        run()
        left = left_behind(before, module)
        expect(not left, f"after {what} there are still {left}", "no hook that was not there before")
    same(backend.run(inputs), bench.backend.run(inputs), "logits after all of these")
