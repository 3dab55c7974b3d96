"""Padding invariance of what is done with latent models and interventions; see ``rules.padding``."""

from __future__ import annotations

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.backends.interventions import Add, run_with_interventions
from interpretune.latents.latent_model import activation_name
from interpretune.replay.rows import LatentRows
from interpretune.testing.hook_points import latents
from interpretune.testing.rule import rule
from interpretune.testing.rules.padding import invariant, real_tokens
from interpretune.testing.workbench import Bench


@rule(stack=True, capabilities=["splice"], after=["padding-backend", "splicing-agrees"])
def padding_splicing(bench: Bench) -> None:
    """Logits and latents with latent models spliced in are those of the unpadded rows."""
    backend, models = bench.backend, latents(bench)
    names = [activation_name(item) for item in models]

    def recorded(inputs: ModelInputs) -> Tensor:
        found = backend.run_spliced(inputs, models, record=names).activations
        return real_tokens(torch.cat([found[name] for name in names], dim=-1), inputs.attention_mask)

    with torch.no_grad():
        invariant(bench, "logits of a spliced run", lambda inputs: backend.run_spliced(inputs, models).answer_logits)
        invariant(bench, f"latents {', '.join(names)} at real tokens", recorded)


@rule(stack=True, capabilities=["gradients"], after=["padding-splicing", "gradients-agree"])
def padding_gradients(bench: Bench) -> None:
    """Gradients at latents are those of the unpadded rows."""
    backend, models = bench.backend, latents(bench)
    name = activation_name(models[0])

    def gradients(inputs: ModelInputs) -> Tensor:
        _, found = backend.gradients(inputs, models, lambda logits: logits[:, 5].sum(), [name])
        return real_tokens(found[name], inputs.attention_mask)

    invariant(bench, f"gradients at {name} at real tokens", gradients)


@rule(stack=True, capabilities=["ablation"], after=["padding-splicing", "ablation-agrees"])
@torch.no_grad()
def padding_ablation(bench: Bench) -> None:
    """Logits with latents ablated are those of the unpadded rows."""
    backend, models = bench.backend, latents(bench)
    names = [activation_name(item) for item in models]

    def ablated(inputs: ModelInputs) -> Tensor:
        prefill = backend.prefill(inputs, models)
        found = []
        for name in names:
            active = (prefill.latents[name] != 0).long().argmax(dim=-1, keepdim=True)  # which a fixed choice may miss
            some = torch.arange(0, models[0].d_sae, 4, device=active.device).expand(len(inputs), -1)
            latents_of_row = torch.cat([some, active], dim=-1)
            rows = torch.arange(len(inputs), device=active.device).repeat_interleave(latents_of_row.shape[-1])
            pairs = torch.stack([rows, latents_of_row.flatten()], dim=-1)
            found.append(backend.ablate(prefill, LatentRows.single(name, pairs)).reshape(len(inputs), -1))
        return torch.cat(found, dim=-1)

    invariant(bench, f"logits with single latents of {', '.join(names)} ablated", ablated)


@rule(stack=True, capabilities=["interventions"], after=["padding-backend", "interventions-agree"])
@torch.no_grad()
def padding_interventions(bench: Bench) -> None:
    """Logits with interventions at the answer, or at all real tokens, are those of the unpadded rows."""
    point = latents(bench)[0].hook_point
    for positions in ("answer", "all"):
        change = Add(at=point, value=torch.linspace(-1, 1, bench.width), positions=positions)

        def steered(inputs: ModelInputs, change: Add = change) -> Tensor:
            return run_with_interventions(bench.backend, inputs, [change])

        invariant(bench, f"logits with an intervention at the positions {positions!r}", steered)
