"""What analyses need from a model: latent models spliced in, gradients, ablations.

All of it is written once, on top of what an adapter supplies (``interpretune.activations.hooked_model``). A backend
that can also rerun single tokens over stored keys and values (``create_replay``) gets exact ablation for the price of
a forward: ``interpretune.replay``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.edits import Edit, Observer, in_turn, watch
from interpretune.activations.finite import check_rows
from interpretune.activations.hook_names import canonical
from interpretune.activations.inputs import ModelInputs, Points, probe_inputs
from interpretune.backends.unembedding import UnembeddingModel
from interpretune.errors import HookPointError
from interpretune.latents.latent_model import (
    LatentModel,
    activation_name,
    alias_of,
    read_points,
    reconstruct,
    side_by_side,
    written_points,
)
from interpretune.latents.splicing import (
    RunsEdits,
    Splice,
    check_width,
    edits_of,
    reads_after_it_writes,
    reads_where_it_writes,
)
from interpretune.system.model_lock import model_lock
from interpretune.system.torch_state import frozen_parameters, gradients_of

if TYPE_CHECKING:
    from interpretune.replay.observed import Observed
    from interpretune.replay.prefill import LatentObserver, Prefill
    from interpretune.replay.rows import LatentRows
    from interpretune.replay.self_check import ReplayTrust


@frozen(eq=False)
class SplicedRun:
    """Result of a forward with latent models spliced in.

    Attributes:
        answer_logits: ``[batch, vocab]`` at the answer position.
        activations: Latent activations ``[batch, pos, d_sae]`` by name; 0 where a latent model left a token unchanged.
    """

    answer_logits: Tensor
    activations: Mapping[str, Tensor]


CAPABILITIES = frozenset({"forward", "splice", "gradients", "ablation", "interventions"})
"""What operations can need from a backend; one that can edit activations at hook points has them all."""


class AnalysisBackend(UnembeddingModel):
    """Runs a model with latent models spliced in and with edits at named hook points.

    Attributes:
        capabilities: The ones of ``CAPABILITIES`` that it offers.
    """

    capabilities: frozenset[str] = CAPABILITIES

    @torch.no_grad()
    def check_latent_models(self, latent_models: Sequence[LatentModel]) -> None:
        """Refuse latent models whose hook point is missing or whose width does not fit, by one forward of two tokens.

        Raises:
            HookPointError: A latent model does not fit (the message has both widths), two read at one hook point
                without an alias that tells them apart, or one reads above where it writes.
        """
        _check_distinct(latent_models)
        names = [name for item in latent_models for name in (*read_points(item), *written_points(item))]
        self.check_hook_points(names)
        seen = self.capture(probe_inputs(self.model_device), names)
        reached = list(seen)
        for item in latent_models:
            reads, writes = read_points(item), written_points(item)
            read = side_by_side(seen, reads)
            check_width(item, read.shape[-1])
            order = [reached.index(name) for name in writes]
            if len(reads) == 1 and reached.index(reads[0]) > order[0] and not reads_where_it_writes(item):
                raise reads_after_it_writes(item)
            if order != sorted(set(order)) or (reads[0], writes[0]) != (item.hook_point, item.output_hook_point):
                raise HookPointError(
                    f"The latent model {item.name!r} names the hook points that it writes as {', '.join(writes)}: not "
                    "in the order in which this model reaches them, or one twice, or hook_point and output_hook_point "
                    "are not the first that it reads and writes."
                )
            made = reconstruct(item, item.encode(read), read)
            width, written = side_by_side(seen, writes).shape[-1], made.shape[-1]
            if width != written:
                raise HookPointError(
                    f"The latent model {item.name!r} writes {written} numbers at {', '.join(writes)}, where this model "
                    f"has {width}. Was it trained on another model?"
                )

    def run_spliced(
        self,
        inputs: ModelInputs,
        latent_models: Sequence[LatentModel],
        latent_edits: Mapping[str, Edit] | None = None,
        record: Sequence[str] = (),
    ) -> SplicedRun:
        """Run with the input of every latent model replaced by its reconstruction.

        Args:
            inputs: The batch.
            latent_models: Spliced in together.
            latent_edits: Edits of latent activations ``[batch, pos, d_sae]``, by activation name.
            record: Names of the activations to return, after the edits.

        Raises:
            HookPointError: A hook point is missing, an edit names no spliced latent model, or two latent models read at
                one hook point without an alias.
        """
        edits, recorded = self.splice_edits(inputs, latent_models, latent_edits or {}, record)
        logits = self.forward(inputs, edits, inputs.answers)
        return SplicedRun(logits, recorded)

    def splice_edits(
        self,
        inputs: ModelInputs,
        latent_models: Sequence[LatentModel],
        latent_edits: Mapping[str, Edit] | None = None,
        record: Sequence[str] = (),
        run: RunsEdits | None = None,
    ) -> tuple[dict[str, Edit], dict[str, Tensor]]:
        """Edits that splice latent models in, and a mapping that a forward with them fills with activations.

        Args:
            inputs: The batch; the edits are for one forward of it.
            latent_models: Spliced in together.
            latent_edits: As ``run_spliced``.
            record: As ``run_spliced``.
            run: Runs the batch with edits; None: ``forward``. See ``chain``.

        Raises:
            HookPointError: As ``run_spliced``.
        """
        latent_edits = latent_edits or {}
        names = [activation_name(latent_model) for latent_model in latent_models]
        for name in (*latent_edits, *record):
            if name not in names:
                raise HookPointError(f"No spliced latent model has the activations {name!r}. Spliced: {names}.")
        recorded: dict[str, Tensor] = {}

        def recorder(name: str) -> Observer | None:
            return (lambda latents: recorded.__setitem__(name, latents.detach().clone())) if name in record else None

        splices = [
            Splice(item, self.untouched_by(item, inputs), latent_edits.get(name), recorder(name))
            for name, item in zip(names, latent_models, strict=True)
        ]
        return self.chain(splices, run=run or (lambda edits: self.forward(inputs, edits, inputs.answers))), recorded

    def chain(
        self, splices: Sequence[Splice], first: Mapping[str, Edit] | None = None, run: RunsEdits | None = None
    ) -> dict[str, Edit]:
        """One edit per hook point from several splices, for one forward.

        What latent models without an error term write at the same hook point is summed, unless one reads there too: it
        reads what the others wrote.

        A latent model that reads at several hook points is encoded before, by a run in which it writes nothing, with
        the other splices in place.

        Args:
            splices: The splices.
            first: Edits that come before all splices at their hook points.
            run: Makes such a run with the edits that it is given; None: it cannot be made.

        Raises:
            HookPointError: A hook point is missing, two latent models read at one hook point without an alias, or a
                run is needed and cannot be made.
        """
        models = [splice.latent_model for splice in splices]
        _check_distinct(models)
        self.check_hook_points([n for item in models for n in (*read_points(item), *written_points(item))])
        return edits_of(splices, first, run)

    def untouched_by(self, latent_model: LatentModel, inputs: ModelInputs) -> Tensor | None:
        """``untouched_positions`` for a latent model that skips special tokens, None for any other."""
        return self.untouched_positions(inputs) if latent_model.skips_special_tokens else None

    def untouched_positions(self, inputs: ModelInputs) -> Tensor:
        """Positions that a latent model with ``skips_special_tokens`` leaves unchanged, ``[batch, pos]``, bool.

        The first real token of a row (its activation is huge in most models), special tokens and padding; never the
        answer position.
        """
        mask = inputs.attention_mask.bool()
        untouched = ~mask | (mask.cumsum(-1) == 1) | torch.isin(inputs.tokens, self.special_token_ids())
        ends = inputs.answer_positions if inputs.prompt_ends is None else inputs.prompt_ends
        untouched[torch.arange(len(inputs), device=untouched.device), ends] = False
        return untouched

    # ------------------------------------------------------------------------------------------------------- ablations

    @functools.cached_property
    def replays(self) -> ReplayTrust:
        """What is known about replays of this model: whether there are any, and the self-checks made so far."""
        from interpretune.replay.self_check import ReplayTrust

        return ReplayTrust()

    def prefill(
        self,
        inputs: ModelInputs,
        latent_models: Sequence[LatentModel],
        points: Points | None = None,
        observers: Mapping[str, LatentObserver] | None = None,
        *,
        self_check: bool = True,
    ) -> Prefill:
        """Run a batch with latent models spliced in, and store what is needed to rerun single tokens of it.

        Before replays are trusted with latent models that are new to this backend, a few of them are compared with
        whole forwards. If they disagree, or the model cannot be replayed, a warning says so and ablations use the
        plain loop.

        Args:
            inputs: The batch.
            latent_models: Spliced in together.
            points: Tokens to rerun; None: the answer position of each example.
            observers: Receive the latents at all positions, by activation name; other latents are not stored.
            self_check: Make the comparison.

        Raises:
            HookPointError: A hook point is missing, or two latent models read at one hook point without an alias.
        """
        with model_lock(self.model):
            return self.replays.prefill(self, inputs, latent_models, points, observers, self_check)

    def ablate(
        self,
        prefill: Prefill,
        rows: LatentRows,
        columns: Tensor | None = None,
        row_budget: int | None = None,
        observed: Observed | None = None,
    ) -> Tensor:
        """Logits with chosen latents set at the points of a prefill; see ``interpretune.replay.ablate``."""
        from interpretune.replay.ablation import ablate

        return ablate(prefill, rows, columns, row_budget, observed=observed)

    def ablate_from(
        self,
        prefill: Prefill,
        rows: LatentRows,
        wanted: Tensor | None = None,
        columns: Tensor | None = None,
        row_budget: int | None = None,
        observed: Observed | None = None,
    ) -> Tensor:
        """Logits at later positions with latents set at the points; see ``interpretune.replay.ablate_from``."""
        from interpretune.replay.suffix_ablation import ablate_from

        return ablate_from(prefill, rows, wanted, columns, row_budget, observed=observed)

    # ------------------------------------------------------------------------------------------------------- gradients

    def gradients(
        self,
        inputs: ModelInputs,
        latent_models: Sequence[LatentModel],
        objective: Callable[[Tensor], Tensor],
        names: Sequence[str],
    ) -> tuple[SplicedRun, dict[str, Tensor]]:
        """Gradients of a scalar with respect to latent activations at all positions, by one forward and one backward.

        The gradient at a latent includes what flows through latent models above it; it is 0 where another latent model
        overwrites what this one writes. Parameters get no gradient, and the graph begins at the first latent model.

        Args:
            inputs: The batch.
            latent_models: Spliced in together.
            objective: Scalar of the answer logits ``[batch, vocab]``.
            names: Activation names.

        Returns:
            The run (detached) and the gradients ``[batch, pos, d_sae]`` by name.
        """
        return self._gradients(inputs, latent_models, objective, names, inputs.answers, {})

    def gradients_at(
        self,
        inputs: ModelInputs,
        latent_models: Sequence[LatentModel],
        objective: Callable[[Tensor], Tensor],
        names: Sequence[str],
        points: Points,
        latent_edits: Mapping[str, Edit] | None = None,
    ) -> dict[str, Tensor]:
        """Gradients of a scalar of the logits at some points; the rest as ``gradients``.

        Args:
            inputs: The batch.
            latent_models: Spliced in together.
            objective: Scalar of the logits at the points, ``[n, vocab]``.
            names: Activation names.
            points: Where the objective reads logits.
            latent_edits: Edits of latents by activation name; gradients are those with respect to what they give.

        Returns:
            ``[batch, pos, d_sae]`` by name.
        """
        return self._gradients(inputs, latent_models, objective, names, points, latent_edits or {})[1]

    def _gradients(
        self,
        inputs: ModelInputs,
        latent_models: Sequence[LatentModel],
        objective: Callable[[Tensor], Tensor],
        names: Sequence[str],
        points: Points,
        latent_edits: Mapping[str, Edit],
    ) -> tuple[SplicedRun, dict[str, Tensor]]:
        leaves: dict[str, Tensor] = {}
        watched = {name: in_turn([*filter(None, [latent_edits.get(name)]), watch(name, leaves)]) for name in names}
        with model_lock(self.model), torch.enable_grad(), frozen_parameters(self.model, *latent_models):
            edits, _ = self.splice_edits(inputs, latent_models, {**latent_edits, **watched})
            logits = self.forward(inputs, edits, points)
            grads = gradients_of(objective(logits), [leaves[name] for name in names])
        activations = {name: leaf.detach() for name, leaf in leaves.items()}
        real = inputs.attention_mask.bool()
        for name, grad in zip(names, grads, strict=True):
            at_real = grad.masked_fill(~real.unsqueeze(-1), 0)
            check_rows(at_real, f"Gradients at {name}", "Look at the objective, which may have no gradient there.")
        return SplicedRun(logits.detach(), activations), dict(zip(names, grads, strict=True))


def _check_distinct(latent_models: Sequence[LatentModel]) -> None:
    readers: dict[tuple[str, str], LatentModel] = {}
    for item in latent_models:
        other = readers.setdefault((canonical(item.hook_point), alias_of(item)), item)
        if other is not item:
            raise HookPointError(
                f"The latent models {other.name!r} and {item.name!r} both read at {item.hook_point}: their latents "
                "would share a name, and an edit of one would be an edit of both. Give one of them an attribute alias, "
                "such as 'wide', which becomes a part of that name; or analyse them in two sessions."
            )
