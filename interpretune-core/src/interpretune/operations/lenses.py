"""Operations that look at the clean run of the model as it is: logit lens, and direct logit attribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.backends.contributions import of_coordinates, of_latents
from interpretune.backends.direct_paths import DirectPaths, DirectRun
from interpretune.latents.latent_model import activation_name, read_points, written_points
from interpretune.operations.definition import operation
from interpretune.operations.measure import AnswerReader, Measure
from interpretune.operations.objectives import LOGIT_DIFF, Objective
from interpretune.store.fields import Field, Per
from interpretune.store.values import LatentValues

if TYPE_CHECKING:
    from interpretune.backends.backend import AnalysisBackend

LAYERS = ("layer",)
"""Layers are the residual stream before the first block, then after each block."""


@operation(
    writes=(
        Field("layer_objective", "float64", shape=LAYERS, about="the last norm has the scale that it gives the layer"),
        Field("scale_held", "float64", shape=LAYERS, about="the objective with the scale of the actual forward"),
        Field("layer_ranks", "int64", shape=LAYERS, about="of the correct answer, 1 being the highest logit"),
        Field("layer_answers", "float64", shape=(*LAYERS, "answer"), about="logits of the answers, NaN where none is"),
    ),
    needs={"forward"},
    forwards=1,
)
def read_layers(
    answer_reader: AnswerReader,
    inputs: ModelInputs,
    backend: AnalysisBackend,
    labels: Tensor,
    orig_labels: Tensor,
    *,
    objective: Objective = LOGIT_DIFF,
) -> dict[str, Tensor]:
    """Logit lens: the residual stream before block 0 and after each block, read by last norm and unembedding."""
    clean = backend.run(inputs) if objective.reads == "vocabulary" else None
    measure = Measure(answer_reader, orig_labels, objective, clean)
    found: dict[str, list[Tensor]] = {item.name: [] for item in read_layers.writes}
    for layer in DirectPaths(backend).layers(inputs, inputs.answers):
        answers = answer_reader.read(layer.logits).double()
        correct = layer.logits.gather(-1, labels.unsqueeze(-1))
        found["layer_objective"].append(measure(layer.logits).double())
        found["scale_held"].append(measure(layer.scale_held).double())
        found["layer_ranks"].append(1 + (layer.logits > correct).sum(-1))
        found["layer_answers"].append(answers.masked_fill(answers.isneginf(), torch.nan))
    return {name: torch.stack(parts, dim=1) for name, parts in found.items()}


@operation(
    writes=(
        Field("direct", "object", Per.batch, about="DirectRun of the batch"),
        Field("before_cap", "float64", about="the objective before a soft cap of logits; contributions sum to it"),
        Field("direct_bias", "float64", about="contributed by the biases of the last norm and of the unembedding"),
    ),
    needs={"forward", "gradients"},
    forwards=1,
)
def run_direct(
    answer_reader: AnswerReader,
    inputs: ModelInputs,
    backend: AnalysisBackend,
    latent_models: Sequence[Any],
    orig_labels: Tensor,
    *,
    objective: Objective = LOGIT_DIFF,
) -> dict[str, Any]:
    """A forward of the model as it is, and slopes of the objective by what is written, the scales of norms held."""
    paths = DirectPaths(backend)
    names = [name for item in latent_models for name in (*read_points(item), *written_points(item))]
    measure = Measure(answer_reader, orig_labels, objective)
    run = paths.run(inputs, inputs.answers, [*paths.written, *names], measure)
    return {"direct": run, "before_cap": run.before_cap, "direct_bias": run.bias}


@operation(writes=Field("written_effects", "float64", Per.latent, about="of the embedding and outputs of sublayers"))
def effects_written(direct: DirectRun) -> dict[str, LatentValues]:
    """What the embedding and every sublayer contribute straight, by hook point."""
    found = {}
    for name in direct.paths.written:
        everything = torch.arange(direct.seen[name].shape[-1]).unsqueeze(0)
        effects = of_coordinates(direct, name, everything).effects
        found[name] = LatentValues(torch.zeros(1, dtype=torch.long, device=effects.device), effects, 1)
    return found


@operation(
    writes=(
        Field("direct_effects", "float64", Per.latent, about="contributed straight to the objective"),
        Field("direct_alone", "float64", Per.latent, about="if the last norm read what the latent writes alone"),
    ),
    needs={"latent_models"},
)
def effects_of_latents(direct: DirectRun, latent_models: Sequence[Any]) -> dict[str, dict[str, LatentValues]]:
    """Direct logit attribution of the latents that are active at some answer, in the model as it is."""
    found: dict[str, dict[str, LatentValues]] = {"direct_effects": {}, "direct_alone": {}}
    for model in latent_models:
        ids, contributions = of_latents(direct, model)
        for field, values in (("direct_effects", contributions.effects), ("direct_alone", contributions.alone)):
            found[field][activation_name(model)] = LatentValues(ids, values, model.d_sae)
    return found
