"""What rows of an ablation note on their way: the latents of latent models above those that they change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from interpretune.activations.edits import Edit, Observer
from interpretune.activations.inputs import Points
from interpretune.errors import AnalysisError
from interpretune.latents.latent_model import LatentModel, summed, written_points
from interpretune.latents.splicing import Splice, WhichSlots

if TYPE_CHECKING:
    from interpretune.replay.prefill import Prefill

Keep = Callable[[], None]
"""Keeps what was noted in a run that has ended."""

See = Callable[[str, Tensor, Points, Tensor], Keep]
"""Gets an activation name, rows ``[m]``, the tokens of the batch at which they note, and the latents there,
``[m, d_sae]``. A run may call it several times for one name; what the last call returns is called when it ends."""


@frozen(eq=False)
class Observed:
    """What rows note, and what is held meanwhile; all names are activation names.

    Attributes:
        above: The latent models that are noted, by the one that a row changes.
        see: Receives what they note.
        slots: Where they do, ``[batch, pos]``, bool, from their own token on; None: at their own token alone.
        held: Latent models that write what they write in the clean run, by the one that a row changes.
    """

    above: Mapping[str, Sequence[str]]
    see: See
    slots: Tensor | None = None
    held: Mapping[str, Sequence[str]] = field(factory=dict)
    _clean: dict[str, Held] = field(factory=dict)

    def noted_by(self, names: Sequence[str]) -> list[str]:
        """What is noted by rows that change these."""
        return list(dict.fromkeys(other for name in names for other in self.above.get(name, ())))

    def held_by(self, names: Sequence[str]) -> list[str]:
        """What is held in rows that change these."""
        return list(dict.fromkeys(other for name in names for other in self.held.get(name, ())))

    def of_rows(self, ids: Tensor) -> Observed:
        """The same for rows that have other numbers, ``[n]``; those of -1 note nothing."""
        if bool((ids >= 0).all()):
            return evolve(self, see=lambda name, rows, tokens, latents: self.see(name, ids[rows], tokens, latents))

        def see(name: str, rows: Tensor, tokens: Points, latents: Tensor) -> Keep:
            there = ids[rows] >= 0
            return self.see(name, ids[rows[there]], tokens.select(there), latents[there])

        return evolve(self, see=see)

    def begins_for(self, prefill: Prefill) -> Prefill:
        """The prefill with rows that begin low enough to pass what they note."""
        if prefill.kept is None:
            return prefill
        projected = {
            name: item
            for name, item in prefill.kept.projected.items()
            if {*self.noted_by([name])} <= {*item.entry.above}
        }
        return evolve(prefill, kept=evolve(prefill.kept, projected=projected))

    def runs_in(self, prefill: Prefill, names: Sequence[str]) -> bool:
        """Whether replays of rows that change these run all that they note; whole forwards do."""
        alone = len(names) == 1
        entry = (prefill.require_kept().alone if alone else prefill.require_kept().entries)[prefill.lowest(names)]
        return {*self.noted_by(names)} <= {*entry.above, *names}

    def tokens(self, examples: Tensor, slots: Tensor, own: Tensor) -> tuple[Points, Points]:
        """At which of the tokens that run rows note.

        Args:
            examples: Example of each row, ``[n]``.
            slots: Slots of the tokens that it runs, ``[n, s]``; at its end the last may repeat.
            own: Which of them it changes, ``[n]``.

        Returns:
            Rows and the tokens within them; and the same tokens as those of the batch.
        """
        rows, tokens = torch.arange(len(own), device=own.device), own
        if self.slots is not None:
            there = self.slots[examples.unsqueeze(-1), slots]
            there &= torch.arange(slots.shape[1], device=own.device) >= own.unsqueeze(-1)
            there[:, 1:] &= slots[:, 1:] != slots[:, :-1]
            rows, tokens = there.nonzero().unbind(-1)
        return Points(rows, tokens), Points(examples[rows], slots[rows, tokens])

    @torch.no_grad()
    def clean(self, prefill: Prefill, names: Sequence[str]) -> dict[str, Held]:
        """What latent models hold at all positions of the batch, ``[batch, pos, ...]``, by name."""
        if not {*names} <= {*self._clean}:
            backend, inputs, shared = prefill.backend, prefill.inputs, shared_writers(prefill.latent_models)

            def keep_latents(name: str) -> Observer:
                return lambda latents: self._clean.__setitem__(name, Held(latents=latents.clone()))

            def keep_output(name: str) -> Observer:
                return lambda output: self._clean.__setitem__(name, Held(output.flatten(2).clone()))

            splices = [
                Splice(
                    item,
                    backend.untouched_by(item, inputs),
                    see_latents=keep_latents(name) if name in shared else None,
                    see_output=None if name in shared else keep_output(name),
                )
                for name, item in prefill.latent_models.items()
            ]
            edits = backend.chain(splices, run=lambda edits: backend.forward(inputs, edits, inputs.answers))
            backend.forward(inputs, edits, inputs.answers)
        return {name: self._clean[name] for name in names}


def shared_writers(models: Mapping[str, LatentModel]) -> set[str]:
    """Activation names of those that write at several hook points, or what is summed with what others write."""
    parts = summed(models.values())
    return {name for name, item in models.items() if item in parts or len(written_points(item)) > 1}


@frozen(eq=False)
class Held:
    """What a latent model writes whatever it reads: the output, or what its latents give with those of others."""

    output: Tensor | None = None
    latents: Tensor | None = None

    def of(self, take: Callable[[Tensor], Tensor]) -> Held:
        """The same at the tokens that ``take`` takes."""
        return Held(*(None if value is None else take(value) for value in (self.output, self.latents)))


def held_at_points(prefill: Prefill, names: Sequence[str], points: Tensor) -> dict[str, Held]:
    """What latent models hold in replays of points, ``[n]``, by name."""
    shared, outputs = shared_writers(prefill.latent_models), prefill.require_kept().outputs
    return {
        name: Held(latents=prefill.latents[name][points].unsqueeze(1))
        if name in shared
        else Held(outputs[name].flatten(1)[points])
        for name in names
    }


@frozen(eq=False)
class Noted:
    """What one run of rows notes and holds.

    Attributes:
        observers: Receive latents, by activation name.
        at: Where they want them, in splices that write nothing of what they read; None: everywhere.
        held: What latent models hold, by activation name.
    """

    observers: Mapping[str, Observer] = field(factory=dict)
    at: Points | None = None
    held: Mapping[str, Held] = field(factory=dict)

    def splice(
        self,
        name: str,
        model: LatentModel,
        untouched: Tensor | WhichSlots | None,
        edit: Edit | None = None,
        output: Tensor | None = None,
    ) -> Splice:
        """The splice of a latent model in this run; the arguments are those of ``Splice``."""
        see, held = self.observers.get(name), self.held.get(name)
        if output is not None:
            return Splice(model, edit=edit, see_latents=see, see_at=self.at, output=output)
        if held is None or held.latents is None:
            return Splice(model, untouched, edit, see, self.at, output=None if held is None else held.output)
        latents = held.latents

        def hold(now: Tensor) -> Tensor:
            if see is not None:
                see(now)
            return latents.to(now.dtype)

        return Splice(model, untouched, hold)


NOTHING = Noted()
"""Nothing is noted, and nothing held."""


@contextlib.contextmanager
def noting(
    observed: Observed | None,
    names: Sequence[str],
    tokens: tuple[Tensor, Tensor, Tensor],
    held: Callable[[list[str]], Mapping[str, Held]],
    ids: Tensor | None = None,
    runs: Collection[str] | None = None,
) -> Iterator[Noted]:
    """What a run of rows notes; it is handed on when the run has ended.

    Args:
        observed: What rows note; None: nothing.
        names: What the rows change.
        tokens: Of the rows: the arguments of ``Observed.tokens``.
        held: Gives what latent models hold at the tokens that run, by activation name.
        ids: Numbers of the rows, ``[n]``; None: 0, 1, 2, ...
        runs: The latent models that run; None: all.

    Raises:
        AnalysisError: The run ends without having reached what is noted.
    """
    if observed is None:
        yield NOTHING
        return
    at, in_batch = observed.tokens(*tokens)
    rows = at.examples if ids is None else ids[at.examples]
    wanted = [name for name in observed.noted_by(names) if runs is None or name in runs] if len(at) else []
    found: dict[str, Keep] = {}

    def observer(name: str) -> Observer:
        def see(latents: Tensor) -> None:
            chosen = latents[:, 0] if latents.shape[:2] == (len(at), 1) else at.of(latents)
            found[name] = observed.see(name, rows, in_batch, chosen)

        return see

    yield Noted({name: observer(name) for name in wanted}, at, held(observed.held_by(names)))
    if missed := [name for name in wanted if name not in found]:
        raise AnalysisError(f"The rows never ran {', '.join(missed)}, whose latents were to be noted.")
    for keep in found.values():
        keep()


def noting_at_points(
    prefill: Prefill,
    observed: Observed | None,
    names: Sequence[str],
    points: Tensor,
    ids: Tensor | None = None,
    runs: Collection[str] | None = None,
) -> contextlib.AbstractContextManager[Noted]:
    """What replays of single tokens note, ``points`` being those of the rows, ``[n]``; the rest as ``noting``."""
    at = prefill.points.select(points)
    tokens = at.examples, at.positions.unsqueeze(-1), torch.zeros_like(points)
    return noting(observed, names, tokens, lambda names: held_at_points(prefill, names, points), ids, runs)
