"""Lenses: what the residual stream says at each layer, and what each unit writes straight to the logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from attrs import asdict, field, frozen
from torch import Tensor

from interpretune.activations.hook_names import canonical
from interpretune.activations.inputs import probe_inputs
from interpretune.backends.backend import AnalysisBackend
from interpretune.backends.contributions import of_coordinates, of_latents
from interpretune.backends.direct_paths import DirectPaths, DirectRun
from interpretune.errors import ConfigurationError, DataError
from interpretune.latents.identity import IdentityDictionary
from interpretune.latents.latent_model import read_points, written_points
from interpretune.operations.objectives import objective_of
from interpretune.questions.in_words import call_in_words
from interpretune.questions.layers import LAYER_FIELDS, LogitLens
from interpretune.questions.measured_batch import MeasuredBatch
from interpretune.questions.model_and_rows import ModelAndRows
from interpretune.questions.question import Question, RowsAsked
from interpretune.questions.result import ROW_FIELDS, Effects
from interpretune.questions.units import UnitSet, unit_sets
from interpretune.store.fields import Field, Per
from interpretune.store.values import LatentValues

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIRECT_FIELDS = (
    *ROW_FIELDS,
    Field("before_cap", "float64", about="the objective before a soft cap of logits; contributions sum to it"),
    Field("bias", "float64", about="contributed by the biases of the last norm and of the unembedding"),
    Field("rest", "float64", about="contributed by all that is none of the units"),
    Field("effects", "float64", Per.latent, about="contribution of the unit, the scales of norms held"),
    Field("activations", "float64", Per.latent, about="of the unit; the norm of several coordinates"),
    Field("alone", "float64", Per.latent, about="contribution if the last norm read what the unit writes alone"),
)


def logit_lens(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Any,
    answers: Any = "answers",
    *,
    correct: Any = "correct",
    objective: Any = "logit_diff",
    batch_size: int = 8,
    store: str | Path | None = None,
) -> LogitLens:
    """The residual stream of every layer at the answer position, read by the model's own last norm and unembedding.

    Each is read as if no blocks followed: with the scale that the last norm gives it, and, beside that, with the scale
    of the actual forward, in which the stream is longer. The two readings differ by that scale alone.

    Args:
        model: A causal model of transformers, of a library whose adapter is installed, or an ``AnalysisBackend``.
        tokenizer: Its tokenizer.
        prompts: Rows; see ``effects``.
        answers: Texts for all rows, or the name of the column that has those of each row.
        correct: The correct answer; see ``effects``.
        objective: What is measured at each layer; see ``effects``. ``kl`` is that from the model's own distribution.
        batch_size: Rows of one forward.
        store: Folder for the results; None: in memory.

    Returns:
        A store of results, with tables and a figure.

    Raises:
        AnalysisError: The model has no way from its last block to the logits that is known here.
        ConfigurationError: There is no such objective, or the batch size is out of range.
        DataError: Rows cannot be read, or the objective is not defined for them.
        HookPointError: The model lacks the residual stream of a block, or its last norm.
    """
    call = call_in_words("it.logit_lens", logit_lens, locals())
    asked = ModelAndRows.of(model, tokenizer, prompts, answers, correct, batch_size)
    with asked.held(), torch.no_grad():
        found: LogitLens = lens_question(asked, objective).answered(store, {"made_by": {"call": call}})
        return found


def direct_logit_attribution(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Any,
    answers: Any = "answers",
    *,
    correct: Any = "correct",
    units: Any = None,
    objective: Any = "logit_diff",
    batch_size: int = 8,
    store: str | Path | None = None,
) -> Effects:
    """What each unit contributes to a logit difference straight, by what it writes into the residual stream.

    Nothing is changed and nothing runs again: what a unit writes at the answer position is taken through the last norm,
    whose scale is that of the actual forward, and through the unembedding. A norm between a sublayer and the stream has
    its scale of the forward too. All this is linear: the contributions of all that is written and the biases sum to the
    objective, before a soft cap where the model bends its logits. What later blocks make of the unit is not counted.

    The column ``alone`` has the other convention: the last norm reads what the unit writes and nothing else. It divides
    by another scale, and does not sum to anything.

    Args:
        model: A causal model of transformers, of a library whose adapter is installed, or an ``AnalysisBackend``.
        tokenizer: Its tokenizer.
        prompts: Rows; see ``effects``.
        answers: Texts for all rows, of one token each, or the name of the column that has those of each row.
        correct: The correct answer; see ``effects``.
        units: As in ``effects``; None: the embedding and what every sublayer adds. Latents are those of the model as it
            is, whose reconstruction errors are in the rest.
        objective: ``logit_diff``, or ``LogitDiff(against='mean')`` of several other answers: it must be linear.
        batch_size: Rows of one forward.
        store: Folder for the results; None: in memory.

    Returns:
        A store of results. ``rows()`` says what contributions sum to, what biases contribute, and the rest: all that is
        none of the units. It means that only where no unit is a part of another.

    Raises:
        AnalysisError: There are no such units, they write nothing into the residual stream, the objective is not
            linear, or a norm or a decoder is not.
        ConfigurationError: There is no such objective, or the batch size is out of range.
        DataError: Rows cannot be read, or answers have several tokens.
        HookPointError: A dictionary does not fit the model.
    """
    call = call_in_words("it.direct_logit_attribution", direct_logit_attribution, locals())
    asked = ModelAndRows.of(model, tokenizer, prompts, answers, correct, batch_size)
    with asked.held(), torch.no_grad():
        found: Effects = direct_question(asked, units, objective).answered(store, {"made_by": {"call": call}})
        return found


def lens_question(asked: ModelAndRows, objective: Any) -> LensQuestion:
    """What ``logit_lens`` asks, with the same errors, not answered yet; the model is held."""
    measured = objective_of(objective)
    if measured.reads == "row":
        raise ConfigurationError(
            f"The objective {measured.name} is of tokens all over the row, and the lens reads the answer position. "
            "Ask for log_prob or kl."
        )
    for number, row in enumerate(asked.rows):
        if not row.answers:
            raise DataError(f"Row {number} has no answers, and the logit lens ranks the correct one. Give it some.")
    sets = vectors(asked.backend, list(DirectPaths(asked.backend).stream))
    return LensQuestion(**asked.parts, sets=sets, objective=measured)


def direct_question(asked: ModelAndRows, units: Any, objective: Any) -> DirectQuestion:
    """What ``direct_logit_attribution`` asks, with the same errors, not answered yet; the model is held."""
    for number, row in enumerate(asked.rows):
        if any(len(ids) > 1 for ids in row.answers):
            raise DataError(
                f"Row {number} has an answer of several tokens, whose log-probabilities are not linear in the logits. "
                "Direct attribution is of answers of one token."
            )
    backend = asked.backend
    sets = vectors(backend, list(DirectPaths(backend).written)) if units is None else unit_sets(units, backend)
    return DirectQuestion(**asked.parts, sets=sets, objective=objective_of(objective))


def vectors(backend: AnalysisBackend, names: Sequence[str]) -> list[UnitSet]:
    """Unit sets of the whole vectors at hook points of the residual stream's width."""
    backend.check_hook_points(names)
    width = backend.capture(probe_inputs(backend.model_device), names[:1])[names[0]].shape[-1]
    one, everything = torch.zeros(1, dtype=torch.long), torch.arange(width).unsqueeze(0)
    return [UnitSet(name, IdentityDictionary(name, width), one, everything, 1, "vector") for name in names]


@frozen(eq=False, kw_only=True)
class _Looking(Question):
    """A question to the clean run at the answer position."""

    value: Any = field(default="nothing", init=False)
    mean_over: None = field(default=None, init=False)
    positions: str = field(default="answer", init=False)
    budget: None = field(default=None, init=False)
    row_budget: None = field(default=None, init=False)

    @cached_property
    def paths(self) -> DirectPaths:
        """The model's ways to the logits."""
        return DirectPaths(self.backend)

    def measured(self, batch: RowsAsked) -> MeasuredBatch:
        """The batch in the model as it is."""
        return MeasuredBatch(self.backend, [], batch.rows, batch.sequences, batch.points, self.objective)


@frozen(eq=False, kw_only=True)
class LensQuestion(_Looking):
    """What ``logit_lens`` asks; the unit sets are the layers."""

    fields: ClassVar = LAYER_FIELDS
    result: ClassVar = LogitLens
    method: Any = field(default="lens", init=False)

    def computed(self, batch: RowsAsked) -> dict[str, Any]:
        """What is stored of a batch."""
        clean, sequences = self.measured(batch), batch.sequences
        found: dict[str, dict[str, Tensor]] = {item.name: {} for item in LAYER_FIELDS if item.per is Per.latent}
        for layer in self.paths.layers(sequences.inputs, sequences.wanted_points):
            name = layer.hook_point
            found["layer_objective"][name] = clean.measured(layer.logits).double()
            found["scale_held"][name] = clean.measured(layer.scale_held).double()
            found["layer_logits"][name] = self._answers(batch, clean, layer.logits)
            found["rank"][name] = _rank(batch, layer.logits)
        one = torch.zeros(1, dtype=torch.long)
        values = {
            name: {layer: LatentValues(one, numbers.unsqueeze(1), 1) for layer, numbers in layers.items()}
            for name, layers in found.items()
        }
        return {**self.told_of(batch, clean), **values}

    def _answers(self, batch: RowsAsked, clean: MeasuredBatch, logits: Tensor) -> Tensor:
        """Logits of the answers of each row, or log-probabilities where they have several tokens, ``[n, k]``."""
        most = max(len(row.answers) for row in self.rows)
        found = logits.new_full((len(batch.rows), most), torch.nan, dtype=torch.float64)
        if batch.sequences.several:
            read = clean.outcome_of(logits).answers
            found[:, : read.shape[1]] = read.masked_fill(read.isneginf(), torch.nan)
            return found
        for i, row in enumerate(batch.rows):
            ids = [tokens[0] for tokens in row.answers]
            found[i, : len(ids)] = logits[i, ids].double()
        return found


def _rank(batch: RowsAsked, logits: Tensor) -> Tensor:
    """Rank of the first token of the correct answer among all tokens, 1 being the highest, ``[n]``."""
    sequences = batch.sequences
    rows = torch.arange(len(batch.rows), device=logits.device)
    at = logits[torch.searchsorted(sequences.rows, rows) * sequences.wanted.shape[1]]
    first = torch.tensor([row.answers[row.correct][0] for row in batch.rows], device=logits.device)
    return 1 + (at > at.gather(-1, first.unsqueeze(-1))).sum(-1)


@frozen(eq=False, kw_only=True)
class DirectQuestion(_Looking):
    """What ``direct_logit_attribution`` asks."""

    fields: ClassVar = DIRECT_FIELDS
    method: Any = field(default="direct", init=False)

    def computed(self, batch: RowsAsked) -> dict[str, Any]:
        """What is stored of a batch."""
        clean, sequences = self.measured(batch), batch.sequences
        models = [item.dictionary for item in self.sets]
        names = [name for item in models for name in (*read_points(item), *written_points(item))]
        run = self.paths.run(sequences.inputs, sequences.wanted_points, names, clean.measured)
        parts = {item.name: _contributions(run, item) for item in self.sets}
        total = sum((part["effects"].values.sum(-1) for part in parts.values()), torch.zeros_like(run.bias))
        fields = ("effects", "activations", "alone")
        return {
            **self.told_of(batch, clean),
            "before_cap": run.before_cap,
            "bias": run.bias,
            "rest": run.before_cap - run.bias - total,
            **{name: {units: part[name] for units, part in parts.items()} for name in fields},
        }


def _contributions(run: DirectRun, item: UnitSet) -> dict[str, LatentValues]:
    """Effects, activations, and contributions alone of the units of a set."""
    if isinstance(item.dictionary, IdentityDictionary):
        ids, found = item.ids, of_coordinates(run, canonical(item.dictionary.hook_point), item.members)
    else:
        ids, found = of_latents(run, item.dictionary, item.ids)
    return {name: LatentValues(ids, values, item.size) for name, values in asdict(found, recurse=False).items()}
