"""A question of effects on units, and how a batch of it is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.inputs import Points
from interpretune.circuits.dictionary_order import Order
from interpretune.circuits.node_effects import NODE_FIELDS, NodeEffects
from interpretune.circuits.noted_effects import ChangedUnits, Found, NotedEffects
from interpretune.errors import DataError
from interpretune.latents.latent_model import LatentModel
from interpretune.questions.measured_batch import MeasuredBatch
from interpretune.questions.question import Question, RowsAsked
from interpretune.questions.tokens_of_rows import prompt_tokens
from interpretune.questions.unit_effects import changed_rows, exact_effects
from interpretune.questions.units import UnitSet
from interpretune.replay.gradients import gradient_effects

SAME = "same"
"""Effects are read at the token that is changed."""


@frozen(eq=False, kw_only=True)
class NodeQuestion(Question):
    """What ``effects_on`` is asked; its arguments say what each attribute means.

    Attributes:
        on: Target sets.
        order: The dictionaries of all unit sets.
        at: Where effects are read.
        held_by: Activation names of the dictionaries that are held, by that of the one that is changed.
        tolerance: Largest effect that is left out.
        gradient: Whether gradient effects are computed too.
    """

    fields: ClassVar = NODE_FIELDS
    result: ClassVar = NodeEffects

    on: Sequence[UnitSet]
    order: Order
    at: str
    held_by: Mapping[str, Sequence[str]]
    tolerance: float
    gradient: bool

    @property
    def every_set(self) -> Sequence[UnitSet]:
        """Sources and targets."""
        return [*self.sets, *self.on]

    @cached_property
    def groups(self) -> list[list[UnitSet]]:
        """The sources, which run together with all dictionaries; before them nothing, for the model as it is."""
        return [[], list(self.sets)] if self.order.dictionaries else [list(self.sets)]

    def dictionaries(self, group: Sequence[UnitSet]) -> list[LatentModel]:
        """All of them, wherever units are changed."""
        return list(self.order.models.values()) if group else []

    def check_spans(self) -> None:
        """Refuse rows in which no effect could be read (``DataError``)."""
        for number, row in enumerate(self.rows):
            changed = self._tokens(row, number)
            if not [token for token in self._targets(row, number) if token >= changed[0]]:
                raise DataError(
                    f"Row {number}: effects are to be read at {self.at!r}, which stands before {self.positions!r}, "
                    "where units are changed, and no effect goes back. Choose later tokens, or at='same'."
                )

    def _targets(self, row: Any, number: int) -> range:
        """Tokens of a prompt at which effects are read."""
        if self.at == SAME:
            return self._tokens(row, number)
        return prompt_tokens(row, number, self.at, "at", "'same', ")

    def noted_at(self, batch: RowsAsked) -> Points | None:
        """See ``Question.noted_at``."""
        return self._read(batch, known=False)

    def _read(self, batch: RowsAsked, *, known: bool) -> Points | None:
        """Where effects are read; None: at the token that is changed. Or only where no unit is changed."""
        if self.at == SAME:
            return None
        found = []
        for i, row in enumerate(batch.rows):
            changed = self._tokens(row, batch.first + i)
            targets = self._targets(row, batch.first + i)
            found += [(i, token) for token in targets if token >= changed[0] and (known or token not in changed)]
        at = torch.tensor(found, dtype=torch.long, device=batch.points.examples.device).reshape(-1, 2)
        return Points(at[:, 0], at[:, 1])

    def computed(self, batch: RowsAsked) -> dict[str, Any]:
        """What is stored of a batch."""
        runs = [self._run(batch, group) for group in self.groups]
        more: dict[str, Any] = {}

        def exact(
            run: MeasuredBatch,
            points: Points,
            group: Sequence[UnitSet],
            wanted: Mapping[str, Tensor],
            chosen: Mapping[str, Tensor],
        ) -> dict[str, Tensor]:
            above = self.order.above
            follows = [[target.activation_name in above[item.activation_name] for target in self.on] for item in group]
            noted = NotedEffects(
                run, len(points), ChangedUnits.of(group, wanted), self.on, torch.tensor(follows), self.tolerance
            )
            names = {item.activation_name for item in self.on}
            targets = {name: [other for other in others if other in names] for name, others in above.items()}
            observed = run.observing(targets, noted.see, self._read(batch, known=True), self.held_by)
            effects = exact_effects(run, points, group, wanted, chosen, observed)
            found = noted.found()
            slopes = self._gradients(run, group, wanted, chosen, found) if self.gradient else None
            more.update(noted.stored(found, slopes))
            return effects

        parts = self.parts_of(batch, runs[-1], self.groups[-1], exact)
        return {**self.stored_of(batch, runs, parts), **more}

    def _gradients(
        self,
        run: MeasuredBatch,
        group: Sequence[UnitSet],
        wanted: Mapping[str, Tensor],
        chosen: Mapping[str, Tensor],
        found: Found,
    ) -> Tensor:
        """Gradient effects, ``[m]``; NaN on other tokens, on units of several coordinates, and without replays."""
        result, before = torch.full_like(found.effects, torch.nan), 0
        for item in group:
            rows = run.in_prefill(changed_rows(item, wanted[item.name], chosen[item.name]))
            for number, target in enumerate(self.on):
                mine = (found.sets == number) & (found.rows >= before) & (found.rows < before + len(rows))
                mine = mine.nonzero().flatten()
                mine = mine[rows.points[found.rows[mine] - before] == found.points[mine]]
                if len(mine) and target.members.shape[1] == 1 and run.prefill.kept is not None:
                    latents = target.members.flatten().to(found.places.device)[found.places[mine]]
                    result[mine] = gradient_effects(
                        run.prefill,
                        rows,
                        item.activation_name,
                        target.activation_name,
                        found.rows[mine] - before,
                        latents,
                        self.held_by.get(item.activation_name, ()),
                        self.row_budget,
                    ).double()
            before += len(rows)
        return result

    def about(self) -> dict[str, Any]:
        """See ``Question.about``."""
        about = Question.about(self)
        about["question"] |= {
            "on": [item.told for item in self.on],
            "at": self.at,
            "direct": bool(self.held_by),
            "tolerance": self.tolerance,
            "gradient": self.gradient,
        }
        return about
