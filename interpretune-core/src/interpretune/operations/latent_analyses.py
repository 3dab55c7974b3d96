"""The operations that make up the analyses of latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.finite import check_rows, rows_named
from interpretune.activations.inputs import ModelInputs
from interpretune.errors import AnalysisError, DataError
from interpretune.latents.latent_model import activation_name
from interpretune.models.padding import real_tokens
from interpretune.models.tokenizer import token_texts
from interpretune.operations.definition import operation
from interpretune.operations.measure import AnswerReader, Measure
from interpretune.operations.objectives import LOGIT_DIFF, Objective
from interpretune.replay.effect_noise import is_measured, measure_noise
from interpretune.replay.gradients import attribute, mean_gradients
from interpretune.replay.prefill import LatentObserver, Prefill, prefill as run_once
from interpretune.replay.rows import LatentRows
from interpretune.store.fields import Field, Per
from interpretune.store.values import LatentValues, alive_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interpretune.backends.backend import AnalysisBackend

ALIVE = Field("alive_latents", "object", Per.batch, about="latents active at some answer, by activation name")
ANSWER_LOGITS = Field("answer_logits", shape=("vocab",), about="logits at the answer position")
LOGIT_DIFFS = Field("logit_diffs", about="logit of the correct answer minus that of the other, logits")
BASE_LOGIT_DIFFS = Field("base_logit_diffs", about="logit differences that effects are counted from, logits")
ACTIVATIONS = Field("activations", per=Per.latent, about="at the answer position")
GRADIENTS = Field("gradients", per=Per.latent, about="of the summed objective, at the answer position")
ABLATED_LOGITS = Field("ablated_logits", per=Per.latent, shape=("answer",), about="answers' logits without the latent")
EFFECTS = Field("effects", per=Per.latent, about="effect on the logit difference, logits")
EFFECT_NOISE = Field(
    "effect_noise", "float64", Per.batch, about="what rounding alone does to an effect, logits; 0 where not measured"
)

# ------------------------------------------------------------------------------------------------------------ passes


@operation(writes=Field("answer_indices", "int64", about="answer position in the padded row"), volatile={"known"})
def answer_positions(inputs: ModelInputs, batch_idx: int, *, known: Sequence[Tensor] | None = None) -> Tensor:
    """The last token of each row that is not padding; an error if ``known`` positions of another analysis differ."""
    found = inputs.answer_positions
    if known is None:
        return found
    given = entry_of(known, batch_idx, "analysis_cfg.answer_indices").to(found.device)
    if not torch.equal(given, found):
        raise AnalysisError(
            f"analysis_cfg.answer_indices of batch {batch_idx} are {given.tolist()}, but this batch has its answers at "
            f"{found.tolist()}. Both analyses must see the same batches in the same order."
        )
    return found


@operation(writes=ANSWER_LOGITS, needs={"forward"}, forwards=1)
def plain_forward(inputs: ModelInputs, backend: AnalysisBackend) -> Tensor:
    """One forward without latent models."""
    return backend.run(inputs)


@frozen(eq=False)
class HighestActivations:
    """The highest activation of every latent in each prompt, ``[batch, d_sae]``, and its position without padding."""

    values: Tensor
    positions: Tensor


@operation(
    writes=(
        Field("clean", "object", Per.batch, about="Prefill of the batch with all latent models spliced in"),
        Field("highest", "object", Per.batch, about="HighestActivations by activation name"),
    ),
    needs={"splice", "latent_models"},
    forwards=1,
    volatile={"self_check"},
)
def spliced_run(
    inputs: ModelInputs,
    backend: AnalysisBackend,
    latent_models: Sequence[Any],
    replays: bool,
    *,
    names: Sequence[str] | None = None,
    self_check: bool = True,
) -> dict[str, Any]:
    """One forward with all latent models spliced in; stores what replays need if some operation replays."""
    recorded = [activation_name(item) for item in latent_models] if names is None else list(names)
    highest: dict[str, HighestActivations] = {}
    observers = {name: _peak_finder(name, len(inputs), highest) for name in recorded}
    if replays:
        clean = backend.prefill(inputs, list(latent_models), observers=observers, self_check=self_check)
    else:
        clean = run_once(backend, inputs, list(latent_models), observers=observers)
    return {"clean": clean, "highest": highest}


def _peak_finder(name: str, batch: int, highest: dict[str, HighestActivations]) -> LatentObserver:
    """Records where latents are most active in each prompt."""

    def find(latents: Tensor, inputs: ModelInputs, examples: Tensor) -> None:
        if name not in highest:
            shape = (batch, latents.shape[-1])
            highest[name] = HighestActivations(latents.new_zeros(shape), examples.new_zeros(shape))
        for row, example in enumerate(examples.tolist()):
            real = inputs.attention_mask[row].nonzero().flatten()
            values, where = latents[row, real].max(dim=0)
            highest[name].values[example] = values
            highest[name].positions[example] = real[where] - real[0]

    return find


@operation(writes=ANSWER_LOGITS)
def spliced_logits(clean: Prefill) -> Tensor:
    """Logits of the spliced run."""
    return clean.logits


@operation(writes=ALIVE)
def find_alive(
    clean: Prefill,
    highest: Mapping[str, HighestActivations],
    batch_idx: int,
    *,
    known: Sequence[Mapping[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Latents that are active at the answer position of some example of the batch, or the ``known`` ones."""
    named = {} if known is None else entry_of(known, batch_idx, "alive_latents")
    device = clean.logits.device
    return {name: named[name].to(device) if name in named else alive_at(clean.latents[name]) for name in highest}


@operation(writes=ACTIVATIONS)
def activations_of_alive(clean: Prefill, alive_latents: Mapping[str, Tensor]) -> dict[str, LatentValues]:
    """Activations of the alive latents."""
    return {name: _of_alive(clean.latents[name], ids) for name, ids in alive_latents.items()}


@operation(
    writes=(
        Field("peak_values", per=Per.latent, about="highest activation in the prompt"),
        Field("peak_positions", "int64", per=Per.latent, about="its position, counted without padding"),
    )
)
def peaks_of_alive(
    highest: Mapping[str, HighestActivations], alive_latents: Mapping[str, Tensor]
) -> dict[str, dict[str, LatentValues]]:
    """Where in each prompt the alive latents are most active."""
    for name, item in highest.items():
        check_rows(item.values, f"Latents of {name}", "Look at the latent model's weights, and at what it reads.")
    return {
        "peak_values": {name: _of_alive(highest[name].values, ids) for name, ids in alive_latents.items()},
        "peak_positions": {name: _of_alive(highest[name].positions, ids) for name, ids in alive_latents.items()},
    }


@operation(writes=ABLATED_LOGITS, needs={"ablation", "latent_models"}, volatile={"row_budget"})
def ablate_alive(
    answer_reader: AnswerReader,
    clean: Prefill,
    activations: Mapping[str, LatentValues],
    *,
    row_budget: int | None = None,
) -> dict[str, LatentValues]:
    """Answers' logits with each alive latent set to zero at the answer position."""
    parts, columns = alive_rows(activations), answer_reader.columns
    logits = clean.backend.ablate(clean, LatentRows.joined(parts), columns, row_budget).split(list(map(len, parts)))
    found = {}
    for (name, alive), rows, mine in zip(activations.items(), parts, logits, strict=True):
        with rows_named(rows.points):
            answers = answer_reader.read(mine, rows.points, columns)
        found[name] = LatentValues(alive.latents, answers.reshape(*alive.values.shape, answers.shape[-1]), alive.d_sae)
    return found


def alive_rows(activations: Mapping[str, LatentValues]) -> list[LatentRows]:
    """For each latent model a row for each example and alive latent, which is set to zero."""
    parts = []
    for name, alive in activations.items():
        batch, n_alive = alive.values.shape
        examples = torch.arange(batch, device=alive.latents.device).repeat_interleave(n_alive)
        parts.append(LatentRows.single(name, torch.stack([examples, alive.latents.repeat(batch)], dim=-1)))
    return parts


@operation(
    writes=GRADIENTS,
    needs={"gradients", "latent_models"},
)
def gradients_of_alive(
    answer_reader: AnswerReader,
    clean: Prefill,
    orig_labels: Tensor,
    alive_latents: Mapping[str, Tensor],
    *,
    objective: Objective = LOGIT_DIFF,
    steps: int | None = None,
) -> dict[str, LatentValues]:
    """Gradients of the summed objective by the alive latents' activations, or their means over steps from zero on."""
    measure, names = Measure(answer_reader, orig_labels, objective, clean.logits), list(alive_latents)
    columns = measure.columns

    def total(logits: Tensor, points: Tensor) -> Tensor:
        return measure(logits, points, columns).sum()

    if steps is not None:
        found = mean_gradients(clean, total, names, columns, steps)
    elif clean.kept is not None:
        found = attribute(clean, total, names, columns)
    else:
        _, everywhere = clean.backend.gradients(
            clean.inputs,
            list(clean.latent_models.values()),
            lambda logits: measure(logits).sum(),
            names,
        )
        found = {name: clean.points.of(values) for name, values in everywhere.items()}
    return {name: _of_alive(found[name], ids) for name, ids in alive_latents.items()}


@operation(writes=EFFECT_NOISE, needs={"splice", "latent_models"})
def noise_of_effects(
    answer_reader: AnswerReader,
    clean: Prefill,
    orig_labels: Tensor,
    batch_idx: int,
    *,
    objective: Objective = LOGIT_DIFF,
) -> float:
    """Standard deviation of an effect by rounding, measured in the first batch and, in 16 bits, in some later ones."""
    if not is_measured(batch_idx, clean.logits.dtype):
        return 0.0
    return measure_noise(clean, Measure(answer_reader, orig_labels, objective, clean.logits))


# -------------------------------------------------------------------------------------------------------------- texts


@operation(writes=Field("tokens", "int64", ragged=True, about="ids of the real tokens"))
def unpadded_tokens(inputs: ModelInputs) -> list[Tensor]:
    """Tokens without padding."""
    return real_tokens(inputs.tokens, inputs.attention_mask)


@operation(writes=Field("pieces", "string", ragged=True, about="text of each real token"))
def token_pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Tensor]) -> list[list[str]]:
    """Text of each token."""
    return token_texts(tokenizer, tokens)


@operation(writes=Field("prompts", "string", about="text of the example"))
def prompt_texts(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Tensor]) -> list[str]:
    """Text of each example, without special tokens."""
    texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return texts


# ----------------------------------------------------------------------------------------------------------- numbers


@operation(
    writes=Field("answers", shape=("answer",), about="logits of the answers"), reads=("answer_reader", ANSWER_LOGITS)
)
def answer_columns(answer_reader: AnswerReader, answer_logits: Tensor) -> Tensor:
    """Logits reduced to the answers."""
    return answer_reader.read(answer_logits)


@operation(writes=Field("loss", per=Per.batch, about="mean of the batch, nats unless the module has its own loss"))
def mean_loss(loss_fn: Callable[[Tensor, Tensor], Tensor], answer_logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of the answer tokens."""
    return loss_fn(answer_logits, labels)


@operation(writes=Field("preds", "int64", about="answer with the highest logit"))
def predict_answers(answers: Tensor) -> Tensor:
    """Predicted answers."""
    return answers.argmax(dim=-1)


@operation(writes=LOGIT_DIFFS)
def differ_answers(answers: Tensor, orig_labels: Tensor) -> Tensor:
    """Logit differences."""
    return logit_differences(answers, orig_labels)


@operation(writes=BASE_LOGIT_DIFFS)
def count_from_clean(logit_diffs: Tensor, batch_idx: int, *, known: Sequence[Tensor] | None = None) -> Tensor:
    """Logit differences from which effects are computed: of the run itself, or ``known`` ones of another."""
    base: Tensor = logit_diffs if known is None else entry_of(known, batch_idx, "analysis_cfg.base_logit_diffs")
    return base


@operation(writes=EFFECTS, reads=("activations", ABLATED_LOGITS, BASE_LOGIT_DIFFS, "orig_labels"))
def ablation_effects(
    activations: Mapping[str, LatentValues],
    ablated_logits: Mapping[str, LatentValues],
    base_logit_diffs: Tensor,
    orig_labels: Tensor,
) -> dict[str, LatentValues]:
    """Clean logit difference minus that without the latent; exactly 0 if the latent is not active."""
    found = {}
    for name, alive in activations.items():
        without = logit_differences(ablated_logits[name].values, orig_labels.unsqueeze(-1))
        effects = base_logit_diffs.to(without.device).unsqueeze(-1) - without
        found[name] = LatentValues(alive.latents, effects.masked_fill(alive.values == 0, 0), alive.d_sae)
    return found


@operation(writes=EFFECTS)
def attribution_effects(
    activations: Mapping[str, LatentValues], gradients: Mapping[str, LatentValues]
) -> dict[str, LatentValues]:
    """Attribution patching: activation times gradient."""
    return {
        name: LatentValues(item.latents, item.values * gradients[name].values, item.d_sae)
        for name, item in activations.items()
    }


def logit_differences(answers: Tensor, labels: Tensor) -> Tensor:
    """Logit of the correct answer minus that of the other.

    Args:
        answers: Logits of the two answers, ``[..., 2]``.
        labels: Correct answer, broadcastable to ``[...]``.

    Returns:
        ``[...]``, in logits.

    Raises:
        DataError: There are not two answers.
    """
    if answers.shape[-1] != 2:
        raise DataError(
            f"A logit difference is defined for two answers; this task has {answers.shape[-1]}. Give each row two, or "
            "say what several others are reduced to: AnalysisCfg(objective=LogitDiff(against='mean'))."
        )
    labels = labels.expand(answers.shape[:-1]).unsqueeze(-1)
    return (answers.gather(-1, labels) - answers.gather(-1, 1 - labels)).squeeze(-1)


def entry_of(known: Sequence[Any], batch_idx: int, name: str) -> Any:
    """The values of another analysis for a batch.

    Args:
        known: One entry for each batch.
        batch_idx: Index of the batch.
        name: What they are, for the error.

    Raises:
        AnalysisError: There are fewer batches.
    """
    if batch_idx >= len(known):
        raise AnalysisError(
            f"{name} has {len(known)} batches, and batch {batch_idx} is asked for. Run the clean analysis over at "
            "least as many batches."
        )
    return known[batch_idx]


def _of_alive(values: Tensor, latents: Tensor) -> LatentValues:
    return LatentValues(latents, values[:, latents], values.shape[-1])
