"""Operations that measure by an objective other than the difference of two logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import evolve
from torch import Tensor

from interpretune.activations.finite import rows_named
from interpretune.operations.definition import Operation, operation
from interpretune.operations.latent_analyses import ANSWER_LOGITS, EFFECTS, alive_rows
from interpretune.operations.measure import AnswerReader, Measure
from interpretune.operations.objectives import LOGIT_DIFF, MOST_LOGITS, Objective
from interpretune.replay.prefill import Prefill
from interpretune.store.fields import Field, Per
from interpretune.store.values import LatentValues

OBJECTIVE = Field("objective", about="at the answer position")
ABLATED_OBJECTIVE = Field("ablated_objective", per=Per.latent, about="without the latent")


@operation(writes=OBJECTIVE, reads=("answer_reader", ANSWER_LOGITS, "orig_labels"))
def measure_objective(
    answer_reader: AnswerReader, answer_logits: Tensor, orig_labels: Tensor, *, objective: Objective = LOGIT_DIFF
) -> Tensor:
    """The objective of each example."""
    return Measure(answer_reader, orig_labels, objective)(answer_logits)


@operation(writes=ABLATED_OBJECTIVE, needs={"ablation", "latent_models"}, volatile={"row_budget"})
def measure_ablated(
    answer_reader: AnswerReader,
    clean: Prefill,
    activations: Mapping[str, LatentValues],
    orig_labels: Tensor,
    *,
    objective: Objective = LOGIT_DIFF,
    row_budget: int | None = None,
) -> dict[str, LatentValues]:
    """The objective with each alive latent set to zero at the answer position."""
    measure = Measure(answer_reader, orig_labels, objective, clean.logits)
    width = clean.backend.vocab_size if measure.columns is None else len(measure.columns)
    found = {}
    for (name, alive), rows in zip(activations.items(), alive_rows(activations), strict=True):
        parts = []
        for chunk in torch.arange(len(rows), device=rows.points.device).split(max(1, MOST_LOGITS // max(width, 1))):
            logits = clean.backend.ablate(clean, rows.select(chunk), measure.columns, row_budget)
            with rows_named(rows.points[chunk]):
                parts.append(measure(logits, rows.points[chunk], measure.columns))
        found[name] = LatentValues(alive.latents, torch.cat(parts).reshape(alive.values.shape), alive.d_sae)
    return found


@operation(writes=EFFECTS, reads=("activations", ABLATED_OBJECTIVE, OBJECTIVE))
def effects_on_objective(
    activations: Mapping[str, LatentValues], ablated_objective: Mapping[str, LatentValues], objective: Tensor
) -> dict[str, LatentValues]:
    """Clean objective minus that without the latent; exactly 0 if the latent is not active."""
    found = {}
    for name, alive in activations.items():
        effects = objective.unsqueeze(-1) - ablated_objective[name].values
        found[name] = LatentValues(alive.latents, effects.masked_fill(alive.values == 0, 0), alive.d_sae)
    return found


def named(op: Operation, objective: Objective, of: str = "") -> Operation:
    """An operation whose field says which objective it is of, and its unit.

    Args:
        op: Writes one field.
        objective: The objective.
        of: What comes before its name.
    """
    told = f"{of}{objective.name}{f', {objective.unit}' if objective.unit else ''}"
    return evolve(op, writes=(evolve(op.writes[0], about=told),))
