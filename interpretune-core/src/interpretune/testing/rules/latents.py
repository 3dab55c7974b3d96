"""Rules of adapters that load latent models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.hook_names import canonical
from interpretune.latents.latent_model import (
    HasDecoderRows,
    LatentModel,
    read_points,
    reconstruct,
    side_by_side,
    written_points,
)
from interpretune.plugins.declaration import Level
from interpretune.testing import reference
from interpretune.testing.comparing import same, shape
from interpretune.testing.reference_latents import ReferenceLatents
from interpretune.testing.rule import RuleSkipped, expect, rule
from interpretune.testing.rules.splicing import check_spliced
from interpretune.testing.workbench import Bench


@rule(levels=[Level.latents])
@torch.no_grad()
def latent_models_attach(bench: Bench) -> None:
    """Latent models that the adapter loads are frozen, have the members of one, and attach to the model."""
    models = _latent_models(bench)
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
    inputs = bench.even_inputs()
    for item in _latent_models(bench):
        reads = read_points(item)
        read = side_by_side(bench.backend.run_with_cache(inputs, reads)[1], reads)
        latents = item.encode(read)
        shape(latents, (*read.shape[:2], item.d_sae), f"latents of {item.name}")
        expect((latents != 0).any(), f"no latent of {item.name} is active", "some that are")
        expect(bool((latents == 0).any()), f"all latents of {item.name} are active", "inactive latents that are 0")
        once = reconstruct(item, latents, read).clone()
        same(reconstruct(item, latents, read), once, f"a second decoding of {item.name}")
        ids = torch.arange(0, item.d_sae, 5, device=latents.device)
        rows = item.decoder_rows(ids) if isinstance(item, HasDecoderRows) else None
        if rows is not None:
            for row, latent in zip(rows, ids.tolist(), strict=True):
                raised = latents.clone()
                raised[..., latent] += 1.0
                added = reconstruct(item, raised, read) - once
                same(added, row.expand_as(added), f"decoder row {latent} of {item.name}", tolerance=1e-3)


@rule(levels=[Level.latents], capabilities=["splice"], after=["splicing-agrees", "latent-models-decode"])
@torch.no_grad()
def latent_models_splice(bench: Bench) -> None:
    """A run with the adapter's latent models spliced in is that of the plain model with the same encodings."""
    check_spliced(bench, _latent_models(bench), "logits with the adapter's latent models")


def _latent_models(bench: Bench) -> list[Any]:
    models = list(bench.module.latent_models)
    expect(
        models,
        "the session has no latent models",
        "module_settings() of the suite to ask for some: sae_cfgs=[...], or whatever the adapter reads",
    )
    return models


@rule()
def latents_read_where_they_say(bench: Bench) -> None:
    """Latent models stand at the hook points at which they were trained, in the order in which they were asked for."""
    found = [(_named(read_points(item)), _named(written_points(item))) for item in bench.module.latent_models]
    wanted = [(_named(item.read_points), _named(item.written_points)) for item in _truth(bench)]
    expect(found == wanted, f"latent models read and write at {found}", f"{wanted}, as reference_latents() says")


@rule(after=["latents-read-where-they-say"])
@torch.no_grad()
def latents_decode_with_their_bias(bench: Bench) -> None:
    """Decoding gives the decoder's bias where no latent is active, and what the weights say where some are."""
    for item, truth, activations in _models(bench):
        clean = truth.encode(activations)
        bias = "its bias and skip connection" if truth.has_skip_connection else "its bias"
        nothing = torch.zeros_like(clean)
        for latents, where in ((nothing, f"where no latent is active, {bias}"), (clean, "for given latents")):
            item.encode(activations)  # what is decoded was encoded: some latent models note a scale
            wanted = truth.reconstruct(latents, activations)
            same(reconstruct(item, latents, activations), wanted, f"what {item.name} writes {where}")


@rule(after=["latents-read-where-they-say"])
@torch.no_grad()
def latents_encode_as_trained(bench: Bench) -> None:
    """Encoding centres and scales activations as in training: the latents are those of the plain weights."""
    for item, truth, activations in _models(bench):
        what = f"latents of {item.name}"
        same(item.encode(activations), truth.encode(activations), f"{what}, of activations of the model")
        nothing = torch.zeros_like(activations)
        same(item.encode(nothing), truth.encode(nothing), f"{what}, of activations that are 0")


@rule(after=["latents-decode-with-their-bias", "latents-encode-as-trained"])
@torch.no_grad()
def latents_in_train_mode(bench: Bench) -> None:
    """In train mode, too, latents and reconstructions are those of the plain weights."""
    known = list(_models(bench))
    session = bench.new_session()  # its own: modes are changed
    for item, (_, truth, activations) in zip(session.module.latent_models, known, strict=True):
        if isinstance(item, torch.nn.Module):
            item.train()
        latents = item.encode(activations)
        expect((latents != 0).any(), f"in train mode no latent of {item.name} is active", "the latents of eval mode")
        same(latents, truth.encode(activations), f"latents of {item.name} in train mode")
        wanted = truth.reconstruct(latents, activations)
        same(reconstruct(item, latents, activations), wanted, f"what {item.name} writes in train mode")


def _named(hook_points: Sequence[str]) -> str:
    return ", ".join(map(canonical, hook_points))


def _truth(bench: Bench) -> list[ReferenceLatents]:
    """What the suite says; where it says nothing, the rule is skipped."""
    truth = bench.suite.reference_latents()
    if truth is None:
        models = list(bench.module.latent_models)
        about = "the session has no latent models" if not models else "the suite gives no reference_latents()"
        raise RuleSkipped(f"{about}: weights, centring and hook points of latent models are not checked")
    return list(truth)


def _models(bench: Bench) -> Iterator[tuple[Any, ReferenceLatents, Tensor]]:
    """Each latent model of the session, the truth about it, and what the plain model has where it reads."""
    for item, truth in zip(bench.module.latent_models, _truth(bench), strict=True):
        points = truth.read_points
        seen = reference.activations_of(bench.reference, bench.even_rows, points)
        yield item, truth, torch.cat([seen[point] for point in points], dim=-1).to(bench.module.device)
