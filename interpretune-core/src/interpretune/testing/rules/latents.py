"""Rules of adapters that load latent models."""

from __future__ import annotations

from typing import Any

import torch

from interpretune.activations.inputs import ModelInputs
from interpretune.latents.latent_model import HasDecoderRows, LatentModel, activation_name
from interpretune.plugins.declaration import Level
from interpretune.testing import reference
from interpretune.testing.comparing import same, shape
from interpretune.testing.rule import expect, rule
from interpretune.testing.workbench import Bench


@rule(levels=[Level.latents])
@torch.no_grad()
def latent_models_attach(bench: Bench) -> None:
    """Latent models that the adapter loads are frozen, have the members of one, and attach to the model."""
    models = _models(bench)
    for item in models:
        name = getattr(item, "name", type(item).__name__)
        expect(isinstance(item, LatentModel), f"{name} is a {type(item).__name__}", "the members of LatentModel")
        bench.backend.check_latent_models([item])
        if isinstance(item, torch.nn.Module):
            trained = [key for key, parameter in item.named_parameters() if parameter.requires_grad]
            expect(not trained, f"{name} has trainable {', '.join(trained)}", "frozen parameters")
            expect(not item.training, f"{name} is in train mode", "evaluation mode")


@rule(levels=[Level.latents], after=["latent-models-attach"])
@torch.no_grad()
def latent_models_decode(bench: Bench) -> None:
    """Encoding gives zeros and positive numbers; decoding can be repeated; decoder rows are what decoding adds."""
    inputs = ModelInputs.from_batch(bench.even_batch())
    for item in _models(bench):
        place = bench.backend.run_with_cache(inputs, [item.hook_point])[1][item.hook_point].flatten(2)
        latents = item.encode(place)
        shape(latents, (*place.shape[:2], item.d_sae), f"latents of {item.name}")
        expect((latents != 0).any(), f"no latent of {item.name} is active", "some that are")
        expect(bool((latents == 0).any()), f"all latents of {item.name} are active", "inactive latents that are 0")
        once = item.decode(latents).clone()
        same(item.decode(latents), once, f"a second decoding of {item.name}")
        ids = torch.arange(0, item.d_sae, 5, device=latents.device)
        rows = item.decoder_rows(ids) if isinstance(item, HasDecoderRows) else None
        if rows is not None:
            for row, latent in zip(rows, ids.tolist(), strict=True):
                raised = latents.clone()
                raised[..., latent] += 1.0
                added = item.decode(raised) - once
                same(added, row.expand_as(added), f"decoder row {latent} of {item.name}", tolerance=1e-3)


@rule(levels=[Level.latents], capabilities=["splice"], after=["splicing-agrees", "latent-models-decode"])
@torch.no_grad()
def latent_models_splice(bench: Bench) -> None:
    """A run with the adapter's latent models spliced in is that of the plain model with the same encodings."""
    models, inputs = _models(bench), ModelInputs.from_batch(bench.even_batch())
    names = [activation_name(item) for item in models]
    run = bench.backend.run_spliced(inputs, models, record=names)
    wanted = [reference.spliced_run(bench.reference, models, row, bench.special) for row in bench.even_rows]
    same(run.answer_logits, torch.stack([row[0] for row in wanted]), "logits with the adapter's latent models")
    for name in names:
        same(run.activations[name], torch.stack([row[1][name] for row in wanted]), f"latents {name}")


def _models(bench: Bench) -> list[Any]:
    models = list(bench.module.latent_models)
    expect(
        models,
        "the session has no latent models",
        "module_settings() of the suite to ask for some: sae_cfgs=[...], or whatever the adapter reads",
    )
    return models
