"""The clean run of a batch, its objective, and the objective of rows in which units are changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from interpretune.activations.finite import check_rows
from interpretune.activations.inputs import Points
from interpretune.backends.backend import AnalysisBackend
from interpretune.latents.latent_model import LatentModel
from interpretune.operations.objectives import MOST_LOGITS, LogProb, Objective, Outcome, Prob, log_probs_of
from interpretune.questions.encoding import EncodedRow
from interpretune.questions.sequences import Sequences
from interpretune.replay.budgets import naive_budget
from interpretune.replay.effect_noise import noise_by, rounded_logits
from interpretune.replay.gradients import mean_gradients, midpoints
from interpretune.replay.observed import Keep, Observed
from interpretune.replay.rows import LatentRows
from interpretune.replay.suffix_ablation import clean_logits


class MeasuredBatch:
    """A batch of rows, run once, and what an objective makes of it.

    A point is a token of a row's prompt at which units are changed.

    Attributes:
        prefill: The clean run, dictionaries spliced in.
        clean: The objective of each row in it, ``[batch]``.
        answers: What the objective reads of each answer in it, ``[batch, k]``.
        rated: Index of the answer that is rated highest, ``[batch]``; -1 where there is none.
        latents: Latents at the points in it, ``[p, d_sae]`` by activation name.
    """

    def __init__(
        self,
        backend: AnalysisBackend,
        dictionaries: Sequence[LatentModel],
        rows: Sequence[EncodedRow],
        sequences: Sequences,
        points: Points,
        objective: Objective,
        row_budget: int | None = None,
        also: Points | None = None,
    ) -> None:
        """Run the batch.

        Args:
            backend: Runs the model.
            dictionaries: Spliced in together.
            rows: The rows.
            sequences: What is run for them.
            points: Rows, and tokens of their prompts, at which units are changed.
            objective: What is measured.
            row_budget: Most changed rows that run at a time; None: chosen from the free memory.
            also: Further rows, and tokens of their prompts, at which changed rows note latents; none of the points.
        """
        self._backend, self._objective, self._row_budget, self._sequences = backend, objective, row_budget, sequences
        self._points, device = points, sequences.rows.device
        whole = objective.reads == "row"
        most = 1 if whole else max((len(row.answers) for row in rows), default=0)
        there = [[whole or j < len(row.answers) for j in range(most)] for row in rows]
        self._there = torch.tensor(there, dtype=torch.bool, device=device).reshape(len(rows), most)
        self._correct = torch.tensor([0 if whole else row.correct for row in rows], device=device)
        first = [([*(ids[0] for ids in row.answers)] + [0] * most)[:most] for row in rows]
        self._ids = torch.tensor(first, dtype=torch.long, device=device).reshape(len(rows), most)
        self._columns: Tensor | None = None
        if objective.reads == "answers" and not sequences.several:
            self._columns, self._ids = self._ids.unique(return_inverse=True)
        self._at, self._point = sequences.points(points.examples, points.positions)
        noted = self._at
        if also is not None:
            more, _ = sequences.points(also.examples, also.positions)
            noted = Points(torch.cat([noted.examples, more.examples]), torch.cat([noted.positions, more.positions]))
        self.prefill = backend.prefill(sequences.inputs, dictionaries, noted)
        leading = torch.searchsorted(self._point, torch.arange(len(points), device=device))
        self.latents = {name: values[leading] for name, values in self.prefill.latents.items()}
        self._at_answers = torch.equal(self._at.positions, sequences.wanted[self._at.examples, 0])
        every = torch.arange(len(sequences.wanted), device=device)
        self._clean_logits = clean_logits(self.prefill, every, sequences.wanted, self._columns)
        everywhere = torch.arange(len(rows), device=device)
        self._clean_log_probs: Tensor | None = None
        if objective.reads == "vocabulary":
            of_row = torch.searchsorted(sequences.rows, everywhere)  # all sequences of a row have it alike
            self._clean_log_probs = log_probs_of(self._clean_logits[of_row, 0])
        outcome = self._outcome(self._clean_logits, everywhere, sequences.answers, sequences.rows)
        self.answers, self.rated = outcome.answers, outcome.rated
        self.clean = self._measured(outcome, everywhere)

    def changed(self, rows: LatentRows, observed: Observed | None = None) -> Tensor:
        """The objective of rows in which latents are set at points, ``[n]``.

        Args:
            rows: What is set; ``rows.points`` are indices of points.
            observed: What rows note on their way, at tokens of the first sequence of each row.
        """
        return self.changed_and_rated(rows, observed)[0]

    def changed_and_rated(self, rows: LatentRows, observed: Observed | None = None) -> tuple[Tensor, Tensor]:
        """The same, and the index of the answer that is rated highest, ``[n]`` each."""
        found = [(self.clean[:0], self.rated[:0])]
        for chunk in self._chunks(rows):
            part = rows.select(chunk)
            outcome = self._changed(part, None if observed is None else observed.of_rows(chunk))
            found.append((self._measured(outcome, self._points.examples[part.points]), outcome.rated))
        objectives, rated = zip(*found, strict=True)
        return torch.cat(objectives), torch.cat(rated)

    def logits_lost(self, rows: LatentRows) -> Tensor:
        """Logits at the points of such rows, clean minus changed, ``[n, vocab]``."""
        rows = self.in_prefill(rows)
        return self.prefill.logits[rows.points] - self._backend.ablate(self.prefill, rows, None, self._row_budget)

    def in_prefill(self, rows: LatentRows) -> LatentRows:
        """The same rows at points of the prefill, in the first sequence of each."""
        return LatentRows(torch.searchsorted(self._point, rows.points), rows.changes)

    def _changed(self, rows: LatentRows, observed: Observed | None) -> Outcome:
        which, at = (rows.points.unsqueeze(-1) == self._point).nonzero().unbind(-1)
        if observed is not None:  # all sequences of a row have the same latents in the prompt
            again = torch.cat([which.new_zeros(1, dtype=torch.bool), which[1:] == which[:-1]])
            observed = observed.of_rows(which.masked_fill(again, -1))
        repeated = rows.repeated(which, at)
        sequences, options = self._at.examples[at], (self._columns, self._row_budget, observed)
        if self._at_answers and not self._sequences.several:
            logits = self._backend.ablate(self.prefill, repeated, self._columns, self._row_budget, observed).unsqueeze(
                1
            )
        else:
            wanted = self._sequences.wanted[sequences]
            changed = self._at.positions[at].unsqueeze(-1)
            later = torch.maximum(wanted, changed)  # what comes before is as in the clean run
            if observed is not None and observed.slots is not None:  # rows run up to the last token that they note
                steps = torch.arange(observed.slots.shape[1], device=later.device)
                last = (observed.slots * steps).amax(-1)[sequences].unsqueeze(-1)
                if bool((last > later).all(-1).any()):
                    later = torch.cat([later, torch.maximum(last, changed)], dim=-1)
            logits = self._backend.ablate_from(self.prefill, repeated, later, *options)[:, : wanted.shape[1]]
            before, column = (wanted < changed).nonzero().unbind(-1)
            logits[before, column] = self._clean_logits[sequences[before], column]
        examples = self._points.examples[rows.points]
        return self._outcome(logits, examples, self._sequences.answers[sequences], which)

    def observing(
        self,
        above: Mapping[str, Sequence[str]],
        see: Callable[[str, Tensor, Tensor, Tensor], Keep],
        at: Points | None,
        held: Mapping[str, Sequence[str]],
    ) -> Observed:
        """What changed rows note: ``Observed`` with points in the place of tokens of the batch.

        Args:
            above: As there.
            see: As there, with indices of the prefill's points.
            at: Rows and tokens of their prompts at which they note; None: at the token that is changed.
            held: As there.
        """
        tokens, points, slots = self._sequences.inputs.tokens, self.prefill.points, None
        if at is not None:
            there, _ = self._sequences.points(at.examples, at.positions)
            slots = torch.zeros_like(tokens, dtype=torch.bool)
            slots[there.examples, there.positions] = True
        known = torch.full_like(tokens, -1)
        known[points.examples, points.positions] = torch.arange(len(points), device=tokens.device)

        def see_points(name: str, rows: Tensor, at: Points, latents: Tensor) -> Keep:
            return see(name, rows, at.of(known), latents)

        return Observed(above, see_points, slots, held)

    def prompt_tokens(self, points: Tensor) -> Tensor:
        """The tokens of their prompts at which points of the prefill stand, ``[n]``, by their indices."""
        at = self.prefill.points.select(points)
        return at.positions - self._sequences.first[at.examples]

    def _chunks(self, rows: LatentRows) -> Iterator[Tensor]:
        """Indices of rows whose logits fit into memory together."""
        width = self._backend.vocab_size if self._columns is None else max(len(self._columns), 1)
        each = width * self._sequences.wanted.shape[1] * (max(self._ids.shape[1], 1) if self._sequences.several else 1)
        if len(rows):  # objectives are of rows that there are
            yield from torch.arange(len(rows), device=rows.points.device).split(max(1, MOST_LOGITS // each))

    def outcome_of(self, logits: Tensor) -> Outcome:
        """What the objective would read if these were the logits at the wanted points, ``[m, vocab]``."""
        wanted, sequences = self._sequences.wanted, self._sequences
        read = logits.unflatten(0, wanted.shape)
        read = read if self._columns is None else read[..., self._columns]
        return self._outcome(read, torch.arange(len(self.clean)).to(wanted), sequences.answers, sequences.rows)

    def measured(self, logits: Tensor) -> Tensor:
        """The objective of each row of such logits, ``[batch]``, with gradient."""
        return self._measured(self.outcome_of(logits), torch.arange(len(self.clean), device=logits.device))

    def noise(self) -> float:
        """Standard deviation that rounding alone gives an effect, in units of the objective."""
        logits = rounded_logits(self.prefill, self._sequences.inputs, self._sequences.wanted_points)
        return noise_by(self.measured(logits), self.clean)

    def _outcome(self, logits: Tensor, examples: Tensor, answers: Tensor, owner: Tensor) -> Outcome:
        """What an objective reads.

        Args:
            logits: ``[m, w, c]``.
            examples: Row of the batch, ``[n]``.
            answers: Which answer is run, ``[m]``.
            owner: Which of the ``n`` it belongs to, ascending, ``[m]``.
        """
        read, log_probs, clean = logits, None, None
        if self._columns is None:
            read = log_probs_of(logits)
        if self._clean_log_probs is not None and not isinstance(self._objective, (LogProb, Prob)):  # of answers alone
            first = torch.searchsorted(owner, torch.arange(len(examples), device=owner.device))
            log_probs = read[first, 0] if self._sequences.several else read[:, 0]
            clean = self._clean_log_probs[examples]
        if self._sequences.several:
            sequence = torch.searchsorted(self._sequences.rows, examples)[owner] + answers
            tokens = self._sequences.tokens[sequence]
            each = read.gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1).masked_fill(tokens < 0, 0)
            found = read.new_full((len(examples), self._ids.shape[1]), -torch.inf)
            found = found.index_put((owner, answers), each.sum(-1)).masked_fill(~self._there[examples], -torch.inf)
        else:
            found = read[:, 0].gather(-1, self._ids[examples]).masked_fill(~self._there[examples], -torch.inf)
        counts = (self._sequences.tokens >= 0).sum(-1)[examples] if self._objective.reads == "row" else None
        return Outcome(found, self._correct[examples], log_probs, clean, counts)

    def _measured(self, outcome: Outcome, examples: Tensor) -> Tensor:
        found = self._objective.measure(outcome)
        reason = "The logits are finite: look at the objective, and at whether the model rules out an answer."
        check_rows(found.detach(), f"The objective {self._objective.name}", reason, examples)
        return found

    # ------------------------------------------------------------------------------------------------------- gradients

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the objective with respect to latents at the points, ``[p, d_sae]`` by activation name."""
        names = list(self.prefill.latent_models)
        found = self._backend.gradients_at(
            self._sequences.inputs,
            list(self.prefill.latent_models.values()),
            lambda logits: self.measured(logits).sum(),
            names,
            self._sequences.wanted_points,
        )
        return {name: self._summed(self._at.of(values)) for name, values in found.items()}

    def mean_gradients(self, steps: int, starts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means of the gradients while latents move on a straight line, one dictionary and one point at a time.

        Args:
            steps: Gradients are taken in the middles of so many equal parts of the line.
            starts: Latents at the points where it starts, ``[p, d_sae]`` by activation name; it ends at those of the
                clean run.

        Returns:
            ``[p, d_sae]`` by activation name.
        """
        if self._at_answers and not self._sequences.several and self.prefill.kept is not None:
            return mean_gradients(
                self.prefill, self._total_at, list(starts), self._columns, steps, starts, self._row_budget
            )
        return {name: self._mean_gradient(name, steps, start) for name, start in starts.items()}

    def _total_at(self, logits: Tensor, points: Tensor) -> Tensor:
        examples, each = self._points.examples[points], torch.arange(len(points), device=points.device)
        outcome = self._outcome(logits.unsqueeze(1), examples, torch.zeros_like(each), each)
        return self._measured(outcome, examples).sum()

    def _mean_gradient(self, name: str, steps: int, start: Tensor) -> Tensor:
        """The same of one dictionary, by whole forwards."""
        latents = self.latents[name]
        sums, device = torch.zeros_like(latents), latents.device
        points = torch.arange(len(latents), device=device).repeat_interleave(steps)
        shares = midpoints(steps, latents).repeat(len(latents)).unsqueeze(-1)
        together = max(int(torch.bincount(self._point).max()), 1) if len(self._point) else 1
        budget = max((self._row_budget or naive_budget(self.prefill)) // together, 1)
        for chunk in torch.arange(len(points), device=device).split(budget):
            where = points[chunk]
            values = latents[where] - (1 - shares[chunk]) * (latents - start)[where]
            which, at = (where.unsqueeze(-1) == self._point).nonzero().unbind(-1)
            at_points = Points(torch.arange(len(at), device=device), self._at.positions[at])

            def move(given: Tensor, at_points: Points = at_points, values: Tensor = values[which]) -> Tensor:
                moved = given.clone()
                moved[at_points.examples, at_points.positions] = values.to(moved.dtype)
                return moved

            sequences, examples = self._at.examples[at], self._points.examples[where]
            wanted, answers = self._sequences.wanted[sequences], self._sequences.answers[sequences]
            slots = torch.arange(len(wanted), device=device).repeat_interleave(wanted.shape[1])

            def total(logits: Tensor, told: tuple[Tensor, ...] = (examples, answers, which)) -> Tensor:
                read = logits.unflatten(0, (len(told[1]), -1))
                read = read if self._columns is None else read[..., self._columns]
                return self._measured(self._outcome(read, *told), told[0]).sum()

            found = self._backend.gradients_at(
                self._sequences.inputs.select(sequences),
                list(self.prefill.latent_models.values()),
                total,
                [name],
                Points(slots, wanted.flatten()),
                {name: move},
            )
            sums.index_add_(0, where[which], at_points.of(found[name]))
        return sums / steps

    def _summed(self, values: Tensor) -> Tensor:
        """The sum over all sequences of each point, ``[m, d]`` to ``[p, d]``."""
        return values.new_zeros(len(self._points), values.shape[-1]).index_add(0, self._point, values)
