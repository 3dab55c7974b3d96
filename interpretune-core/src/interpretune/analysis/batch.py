"""What an analysis knows of one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

from torch import Tensor

from interpretune.operations import latent_analyses, objective_analyses
from interpretune.operations.definition import SOURCES, Operation
from interpretune.store.fields import Field
from interpretune.store.values import LatentValues, Peaks


@dataclass(kw_only=True)
class AnalysisBatch:
    """Inputs and results of one analysis on one batch; what a mode does not produce stays None or empty.

    Attributes:
        labels: Answer token of each example, ``[batch]``.
        orig_labels: Label of each example, ``[batch]``.
        answer_indices: Answer position, ``[batch]``.
        answer_logits: Logits at the answer position, ``[batch, vocab]``.
        loss: Mean loss of the batch, in nats where the module has no loss function of its own.
        logit_diffs: Logit of the correct answer minus that of the other, ``[batch]``.
        objective: What is measured in the place of logit differences, where that is something else, ``[batch]``.
        preds: Predicted label, ``[batch]``.
        alive_latents: Latents active at the answer position of some example, by activation name, ``[n_alive]``.
        activations: Latent activations at the answer position, by activation name.
        gradients: Gradient of the summed objective at the answer position, by activation name; of integrated gradients,
            its mean over the steps.
        ablated_logits: For each alive latent the answers' logits without it, ``[batch, n_alive, num_labels]``, by
            activation name.
        ablated_objective: For each alive latent the objective without it, where that is no logit difference, by
            activation name.
        effects: Effect of each alive latent on the objective, in its units, by activation name.
        effect_noise: What rounding alone does to an effect, in the same units (``effect_noise.measure_noise``); 0 where
            it was not measured in this batch.
        peak_values: Highest activation of each alive latent in each prompt, by activation name.
        peak_positions: Its position, counted without padding, by activation name.
        dashboard_urls: Published page of each latent, with the placeholder ``{latent}``, by activation name.
        tokens: Real tokens of each example, without padding; saved on request.
        pieces: Text of each of those tokens; saved with them where a tokenizer is known.
        prompts: Text of each example; saved on request.
        further: What operations beside those of the modes wrote and the plan keeps, by field.
    """

    labels: Tensor
    orig_labels: Tensor
    answer_indices: Tensor | None = None
    answer_logits: Tensor | None = None
    loss: Tensor | None = None
    logit_diffs: Tensor | None = None
    objective: Tensor | None = None
    preds: Tensor | None = None
    alive_latents: Mapping[str, Tensor] = field(default_factory=dict)
    activations: Mapping[str, LatentValues] = field(default_factory=dict)
    gradients: Mapping[str, LatentValues] = field(default_factory=dict)
    ablated_logits: Mapping[str, LatentValues] = field(default_factory=dict)
    ablated_objective: Mapping[str, LatentValues] = field(default_factory=dict)
    effects: Mapping[str, LatentValues] = field(default_factory=dict)
    effect_noise: Tensor | float | None = None
    peak_values: Mapping[str, LatentValues] = field(default_factory=dict)
    peak_positions: Mapping[str, LatentValues] = field(default_factory=dict)
    dashboard_urls: Mapping[str, str] = field(default_factory=dict)
    tokens: list[Tensor] | None = None
    pieces: list[list[str]] | None = None
    prompts: list[str] | None = None
    further: Mapping[str, Any] = field(default_factory=dict)

    counted_from = cast("object", None)  # without an annotation, and so no field: it is no result
    """What loss, predictions, objective and effects were computed from; None: nobody knows."""

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.orig_labels)

    @property
    def peaks(self) -> dict[str, Peaks]:
        """Where each alive latent is most active, by activation name."""
        return {
            name: Peaks(item.latents, item.values, self.peak_positions[name].values)
            for name, item in self.peak_values.items()
        }

    def take(self, values: Mapping[str, Any]) -> None:
        """Take over values of fields as operations write them and stores keep them; other names are left out."""
        for name in BATCH_FIELDS & values.keys():
            setattr(self, name, values[name])

    def as_fields(self) -> dict[str, Any]:
        """What is there and can be stored, as values of fields."""
        values = {name: getattr(self, name) for name in FIELDS} | dict(self.further)
        return {k: v for k, v in values.items() if v is not None and not (isinstance(v, Mapping) and not v)}


BATCH_FIELDS = frozenset(item.name for item in fields(AnalysisBatch))
_DECLARED = {**SOURCES} | {
    item.name: item
    for op in (vars(objective_analyses) | vars(latent_analyses)).values()
    if isinstance(op, Operation)
    for item in op.writes
}
FIELDS: Mapping[str, Field] = {
    item.name: _DECLARED[item.name]
    for item in fields(AnalysisBatch)
    if item.name in _DECLARED and _DECLARED[item.name].stored
}
"""What a batch of an analysis is stored as."""
INTERMEDIATES = ("answer_logits", "gradients", "ablated_logits", "ablated_objective")
"""Large results that no report reads: logits over the vocabulary and what effects are computed from."""
