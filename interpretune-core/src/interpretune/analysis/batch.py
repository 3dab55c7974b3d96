"""What an analysis knows of one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

from torch import Tensor

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
        preds: Predicted label, ``[batch]``.
        alive_latents: Latents active at the answer position of some example, by activation name, ``[n_alive]``.
        activations: Latent activations at the answer position, by activation name.
        gradients: Gradient of the summed logit differences at the answer position, by activation name.
        ablated_logits: For each alive latent the answers' logits without it, by activation name,
            ``[batch, n_alive, num_labels]``.
        effects: Effect of each alive latent on the logit difference, in logits, by activation name.
        effect_noise: What rounding alone does to an effect, in logits (``effect_noise.measure_noise``); 0 where it was
            not measured in this batch.
        peaks: Where each alive latent is most active, by activation name.
        dashboard_urls: Published page of each latent, with the place holder ``{latent}``, by activation name.
        tokens: Real tokens of each example, without padding; saved on request.
        pieces: Text of each of those tokens; saved with them where a tokenizer is known.
        prompts: Text of each example; saved on request.
    """

    labels: Tensor
    orig_labels: Tensor
    answer_indices: Tensor | None = None
    answer_logits: Tensor | None = None
    loss: Tensor | None = None
    logit_diffs: Tensor | None = None
    preds: Tensor | None = None
    alive_latents: Mapping[str, Tensor] = field(default_factory=dict)
    activations: Mapping[str, LatentValues] = field(default_factory=dict)
    gradients: Mapping[str, LatentValues] = field(default_factory=dict)
    ablated_logits: Mapping[str, Tensor] = field(default_factory=dict)
    effects: Mapping[str, LatentValues] = field(default_factory=dict)
    effect_noise: Tensor | float | None = None
    peaks: Mapping[str, Peaks] = field(default_factory=dict)
    dashboard_urls: Mapping[str, str] = field(default_factory=dict)
    tokens: list[Tensor] | None = None
    pieces: list[list[str]] | None = None
    prompts: list[str] | None = None

    counted_from = cast("object", None)  # without an annotation, and so no field: it is no result
    """What loss, predictions, logit differences and effects were computed from; None: nobody knows."""

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.orig_labels)

    def take(self, values: Mapping[str, Any]) -> None:
        """Take over values of fields as operations write them and stores keep them; other names are left out."""
        for item in fields(self):
            if item.name in values:
                setattr(self, item.name, values[item.name])
        if "ablated_logits" in values:
            self.ablated_logits = {name: item.values for name, item in values["ablated_logits"].items()}
        if "peak_values" in values and "peak_positions" in values:
            self.peaks = {
                name: Peaks(item.latents, item.values, values["peak_positions"][name].values)
                for name, item in values["peak_values"].items()
            }

    def as_fields(self) -> dict[str, Any]:
        """What is there as values of fields, named as operations name them."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "peaks"}
        values["ablated_logits"] = {
            name: LatentValues(self.activations[name].latents, item, self.activations[name].d_sae)
            for name, item in self.ablated_logits.items()
        }
        for name, part in (("peak_values", "values"), ("peak_positions", "positions")):
            values[name] = {
                hook: LatentValues(item.latents, getattr(item, part), self.activations[hook].d_sae)
                for hook, item in self.peaks.items()
            }
        return {k: v for k, v in values.items() if v is not None and not (isinstance(v, Mapping) and not v)}
