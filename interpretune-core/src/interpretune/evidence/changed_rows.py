"""Rows of a question in which several units are changed together, at all tokens where the question changes units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.hook_names import canonical
from interpretune.activations.inputs import Points
from interpretune.backends.interventions import Patch, run_with_interventions
from interpretune.latents.identity import IdentityDictionary
from interpretune.latents.latent_model import read_points
from interpretune.operations.objectives import MOST_LOGITS
from interpretune.questions.measured_batch import MeasuredBatch
from interpretune.questions.question import Question, RowsAsked
from interpretune.questions.units import UnitSet
from interpretune.replay.rows import Changes, LatentRows

Members = Mapping[str, Tensor]
"""Latents of units that are changed together, ``[m]`` by the name of their unit set."""


@frozen(eq=False)
class Setting:
    """What latents are set to at the points of a batch.

    Attributes:
        members: Which latents.
        values: Their values, ``[p, m]`` by the name of the unit set.
    """

    members: Members
    values: Mapping[str, Tensor]

    @classmethod
    def of(cls, members: Members, latents: Mapping[str, Tensor], n_points: int) -> Setting:
        """Set latents to those of given vectors, ``[d_sae]`` or ``[p, d_sae]`` by the name of the unit set."""
        values = {name: latents[name][..., ids].expand(n_points, -1) for name, ids in members.items()}
        return cls(members, values)


class ChangedBatch:
    """A batch of a question, and what changes of units do to it.

    Where units are changed at the answer position, only that token runs again. Elsewhere whole forwards run, in which
    they are changed at all the question's tokens of a row at once. Where a unit is a latent, all dictionaries of the
    question are spliced in; else the model runs as it is.

    Attributes:
        run: The batch with nothing changed.
        replays: Whether only the answer position runs again.
    """

    def __init__(self, question: Question, batch: RowsAsked, sets: Sequence[UnitSet]) -> None:
        """Run the batch; ``sets`` are those of the units that are changed."""
        self._question, self._batch, self._sets = question, batch, {item.name: item for item in sets}
        plain = [item for item in sets if isinstance(item.dictionary, IdentityDictionary)]
        spliced = question.groups[-1] if len(plain) < len(sets) else []
        self._spliced = [item.dictionary for item in spliced]
        read = [canonical(name) for item in (*plain, *spliced) for name in read_points(item.dictionary)]
        self._together = len(set(read)) == len(read)
        self.replays = self._together and question.positions == "answer"
        self.run = MeasuredBatch(
            question.backend,
            [*(item.dictionary for item in plain if self._together), *self._spliced],
            batch.rows,
            batch.sequences,
            batch.points,
            question.objective,
            question.row_budget,
        )

    def latents(self, name: str) -> Tensor:
        """Latents of a unit set at the points with nothing changed, ``[p, d_sae]``."""
        item, batch = self._sets[name], self._batch
        if self._together or not isinstance(item.dictionary, IdentityDictionary):
            return self.run.latents[item.activation_name]
        seen = self._question.backend.capture(batch.sequences.inputs, [place_of(item)])[place_of(item)]
        at, which = batch.sequences.points(batch.points.examples, batch.points.positions)
        return at.of(seen).flatten(1)[torch.searchsorted(which, torch.arange(len(batch.points), device=which.device))]

    def set_as_in(self, other: ChangedBatch, members: Members) -> Setting:
        """Set units to what they are in a batch with other prompts of the same lengths."""
        return Setting.of(members, {name: other.latents(name) for name in members}, len(self._batch.points))

    def changed(self, settings: Sequence[Setting]) -> tuple[Tensor, Tensor]:
        """The objective of each row, and the index of the answer that is rated highest, ``[k, n]`` each."""
        if not self.replays:
            found = [self._forward(setting, self._batch.sequences.wanted_points) for setting in settings]
            outcomes = [self.run.outcome_of(logits) for logits in found]
            objectives = [self.run.measured(logits) for logits in found]
            return torch.stack(objectives), torch.stack([outcome.rated for outcome in outcomes])
        objective, rated = self.run.changed_and_rated(self._rows(settings))
        return objective.view(len(settings), -1), rated.view(len(settings), -1)

    def logits_lost(self, settings: Sequence[Setting], kinds: Tensor, n_kinds: int) -> Tensor:
        """Logits at the answer position, clean minus changed, summed over rows of each kind.

        Args:
            settings: What is changed.
            kinds: Kind of each row, ``[n]``.
            n_kinds: How many kinds there are.

        Returns:
            ``[k, n_kinds, vocab]``, float64.
        """
        n, vocab = len(self._batch.rows), self._question.backend.vocab_size
        found = torch.zeros(len(settings) * n_kinds, vocab, dtype=torch.float64, device=kinds.device)
        if not self.replays:
            sequences = self._batch.sequences
            ends = torch.tensor([len(row.tokens) - 1 for row in self._batch.rows], device=sequences.rows.device)
            at, which = sequences.points(torch.arange(n, device=ends.device), ends)
            first = torch.searchsorted(which, torch.arange(n, device=ends.device))
            clean = self._forward(None, at.select(first))
            for i, item in enumerate(settings):
                lost = clean - self._forward(item, at.select(first))
                found.index_add_(0, i * n_kinds + kinds, lost.double())
            return found.unflatten(0, (len(settings), n_kinds))
        rows = self._rows(settings)
        for chunk in torch.arange(len(rows), device=rows.points.device).split(max(1, MOST_LOGITS // vocab)):
            lost = self.run.logits_lost(rows.select(chunk))
            found.index_add_(0, chunk // n * n_kinds + kinds[chunk % n], lost.double())
        return found.unflatten(0, (len(settings), n_kinds))

    def _rows(self, settings: Sequence[Setting]) -> LatentRows:
        """A row for each setting and each row of the batch, whose only point is the answer position."""
        points = torch.arange(len(self._batch.points), device=self._batch.points.examples.device)
        return LatentRows.joined([LatentRows(points, self._changes(setting, points)) for setting in settings])

    def _changes(self, setting: Setting, points: Tensor) -> dict[str, Changes]:
        found = {}
        for name, ids in setting.members.items():
            rows = points.repeat_interleave(len(ids))
            latents = ids.to(points.device).repeat(len(points))
            found[self._sets[name].activation_name] = Changes(rows, latents, setting.values[name].flatten())
        return found

    def _forward(self, setting: Setting | None, points: Points) -> Tensor:
        """Logits at points of the batch's sequences, ``[n, vocab]``, by a forward; None: with nothing changed."""
        inputs, changes = self._batch.sequences.inputs, []
        if setting is not None:
            at, which = self._batch.sequences.points(self._batch.points.examples, self._batch.points.positions)
            where = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
            where[at.examples, at.positions] = True
            for name, ids in setting.members.items():
                item, values = self._sets[name], setting.values[name][which]
                source = values.new_zeros(*where.shape, item.dictionary.d_sae)
                source[at.examples.unsqueeze(-1), at.positions.unsqueeze(-1), ids] = values
                changes.append(Patch(at=place_of(item), positions=where, latents=ids, source=source))
        return run_with_interventions(self._question.backend, inputs, changes, self._spliced, points)


def place_of(item: UnitSet) -> str:
    """What an intervention calls the latents of a unit set."""
    return item.dictionary.hook_point if isinstance(item.dictionary, IdentityDictionary) else item.activation_name
