"""Rules of latent models in a forward: splicing, edits of latents, gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.latents.latent_model import activation_name
from interpretune.testing import reference
from interpretune.testing.comparing import same
from interpretune.testing.places import latents
from interpretune.testing.rule import expect, rule
from interpretune.testing.workbench import Bench


@rule(stack=True, capabilities=["splice"], after=["edits-are-made"])
@torch.no_grad()
def splicing_agrees(bench: Bench) -> None:
    """Logits and latents with latent models spliced in are those of the plain model, at every position."""
    models, inputs = latents(bench), ModelInputs.from_batch(bench.even_batch())
    names = [activation_name(item) for item in models]
    found = bench.backend.run_spliced(inputs, models, record=names)
    wanted = [reference.spliced_run(bench.reference, models, row, bench.special) for row in bench.even_rows]
    for name in names:
        expect(name in found.activations, f"no activations {name} were recorded", "those of every latent model")
        same(found.activations[name], torch.stack([row[1][name] for row in wanted]), f"latents {name}")
    same(found.answer_logits, torch.stack([row[0] for row in wanted]), "logits of a spliced run")
    bare = bench.backend.run(inputs)
    expect(not torch.allclose(found.answer_logits, bare), "splicing changes no logit", "logits that it changes")


@rule(stack=True, capabilities=["splice"], after=["splicing-agrees"])
@torch.no_grad()
def latent_edits_agree(bench: Bench) -> None:
    """Edits of latents, at the first token too, change the logits as they change those of the plain model."""
    models, inputs = latents(bench), ModelInputs.from_batch(bench.even_batch())
    for item in models:
        name = activation_name(item)
        for position in (0, 2, inputs.tokens.shape[1] - 1):

            def edit(values: Tensor, position: int = position) -> Tensor:
                changed = values.clone()
                changed[:, position, :5] += 1.0
                return changed

            found = bench.backend.run_spliced(inputs, models, {name: edit}).answer_logits
            wanted = []
            for row in bench.even_rows:
                hooks = reference.splice_hooks(
                    models,
                    row,
                    bench.special,
                    lambda which, x: edit(x) if which is item else x,  # noqa: B023
                )
                wanted.append(reference.logits_of(bench.reference, row, hooks)[-1])
            same(found, torch.stack(wanted), f"logits with latents {name} changed at position {position}")


@rule(stack=True, capabilities=["gradients"], after=["splicing-agrees", "gradients-at-every-place"])
def gradients_agree(bench: Bench) -> None:
    """Gradients at latents are those of the plain model, at every position and through the latent models above."""
    models, inputs = latents(bench), ModelInputs.from_batch(bench.even_batch())
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
