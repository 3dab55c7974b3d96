"""What an adapter supplies to let analyses reach into a model, and what follows from it.

A backend supplies three things: the names of its hook points, a forward with edits at named hook points, and the
special tokens. Caching, splicing latent models, gradients and exact ablation are written here, once, on top of those;
a backend may override any of them with something faster.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches

import torch
from attrs import frozen
from torch import Tensor, nn

from interpretune.analysis.inputs import ModelInputs
from interpretune.analysis.latent_model import Edit, LatentModel, activation_name
from interpretune.analysis.splicing import in_turn, splice
from interpretune.errors import AnalysisError, HookPointError

LOGIT_BUDGET = 64 * 1024 * 1024
"""Most logits (batch x pos x vocab) that one forward of an ablation may hold, unless a row budget is given."""


@frozen(eq=False)
class SplicedRun:
    """Result of a forward with latent models spliced in.

    Attributes:
        answer_logits: ``[batch, vocab]`` at the answer position.
        activations: Latent activations ``[batch, pos, d_sae]`` by name; 0 where a latent model left a token as it is.
    """

    answer_logits: Tensor
    activations: Mapping[str, Tensor]


class _AllCaptured(Exception):  # noqa: N818 - it ends a forward early and never leaves this file
    """Raised inside a forward when nothing that comes after is wanted."""


class AnalysisBackend(ABC):
    """Runs a model with edits at named hook points."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The model that is run."""

    @abstractmethod
    def hook_point_names(self) -> Sequence[str]:
        """Names of all hook points, aliases included."""

    @abstractmethod
    def special_token_ids(self) -> Tensor:
        """Ids of special tokens, ``[n]``, on the model's device."""

    @abstractmethod
    def forward(self, inputs: ModelInputs, edits: Mapping[str, Edit], positions: Tensor | None = None) -> Tensor:
        """Run the model with each edit applied at its hook point.

        Args:
            inputs: The batch; its mask is honoured, on both padding sides.
            edits: Known hook points and what to do there. No hook stays on the model afterwards.
            positions: One position for each row, ``[batch]``; None: all.

        Returns:
            Logits ``[batch, pos, vocab]``, or ``[batch, vocab]`` at ``positions``.
        """

    # ---------------------------------------------------------------------------------------------------------- checks

    def check_hook_points(self, names: Sequence[str]) -> None:
        """Refuse names that the model does not have.

        Raises:
            HookPointError: With the nearest names that exist.
        """
        known = self.hook_point_names()
        lookup = set(known)
        for name in names:
            if name not in lookup:
                near = get_close_matches(name, known, n=3, cutoff=0.5)
                raise HookPointError(
                    f"The model has no hook point {name!r}. "
                    + (f"Nearest: {', '.join(near)}." if near else f"It has, among others: {', '.join(known[:8])}.")
                )

    @torch.no_grad()
    def check_latent_models(self, latent_models: Sequence[LatentModel]) -> None:
        """Refuse latent models whose hook point is missing or whose width does not fit, by one forward of two tokens.

        Raises:
            HookPointError: What does not fit, with both widths, or two latent models that read at one hook point.
        """
        _check_distinct(latent_models)
        names = [name for item in latent_models for name in (item.hook_point, item.output_hook_point)]
        self.check_hook_points(names)
        device = self.model_device
        probe = ModelInputs(
            torch.zeros(1, 2, dtype=torch.long, device=device), torch.ones(1, 2, dtype=torch.long, device=device)
        )
        seen = self.capture(probe, names)
        for item in latent_models:
            width = seen[item.hook_point].flatten(2).shape[-1]
            if width != item.d_in:
                raise HookPointError(
                    f"The latent model {item.name!r} reads {item.d_in} numbers at {item.hook_point}, where this "
                    f"model has {width}. Was it trained on another model?"
                )
            place = item.output_hook_point
            width, written = (
                x.flatten(2).shape[-1]
                for x in (seen[place], item.decode(item.encode(seen[item.hook_point].flatten(2))))
            )
            if width != written:
                raise HookPointError(
                    f"The latent model {item.name!r} writes {written} numbers at {place}, where this model has "
                    f"{width}. Was it trained on another model?"
                )

    @property
    def model_device(self) -> torch.device:
        """Device of the model's parameters."""
        return next(self.model.parameters()).device

    # ------------------------------------------------------------------------------------------------------------ runs

    def run(self, inputs: ModelInputs) -> Tensor:
        """Logits ``[batch, vocab]`` at the answer position, without latent models."""
        return self.forward(inputs, {}, inputs.answer_positions)

    def run_with_cache(self, inputs: ModelInputs, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[batch, vocab]`` at the answer position and activations ``[batch, pos, ...]`` at named hook points.

        Raises:
            HookPointError: A name is unknown.
        """
        cache: dict[str, Tensor] = {}
        logits = self.forward(inputs, _keep(names, cache), inputs.answer_positions)
        return logits, cache

    def capture(self, inputs: ModelInputs, names: Sequence[str]) -> dict[str, Tensor]:
        """Activations ``[batch, pos, ...]`` at named hook points, by a forward that ends where the last one is reached.

        Raises:
            HookPointError: A name is unknown.
        """
        cache: dict[str, Tensor] = {}
        with contextlib.suppress(_AllCaptured), torch.no_grad():
            self.forward(inputs, _keep(names, cache, stop=True))
        return cache

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
            record: Names of the activations to return, as they are after the edits.

        Raises:
            HookPointError: A hook point is missing, an edit names no spliced latent model, or two latent models read at
                one hook point.
        """
        edits, recorded = self.splice_edits(inputs, latent_models, latent_edits or {}, record)
        logits = self.forward(inputs, edits, inputs.answer_positions)
        return SplicedRun(logits, recorded)

    def splice_edits(
        self,
        inputs: ModelInputs,
        latent_models: Sequence[LatentModel],
        latent_edits: Mapping[str, Edit],
        record: Sequence[str],
    ) -> tuple[dict[str, Edit], dict[str, Tensor]]:
        """Edits that splice latent models in, and the mapping that a forward with them fills with activations.

        Where a transcoder writes to a place at which an autoencoder reads, the autoencoder reads what it wrote.
        """
        _check_distinct(latent_models)
        latent_models = sorted(latent_models, key=lambda item: item.hook_point == item.output_hook_point)
        names = [activation_name(latent_model) for latent_model in latent_models]
        for name in (*latent_edits, *record):
            if name not in names:
                raise HookPointError(f"No spliced latent model has the activations {name!r}. Spliced: {names}.")
        self.check_hook_points([n for item in latent_models for n in (item.hook_point, item.output_hook_point)])
        chains: dict[str, list[Edit]] = {}
        recorded: dict[str, Tensor] = {}
        for name, latent_model in zip(names, latent_models, strict=True):
            untouched = self.untouched_positions(inputs) if latent_model.skips_special_tokens else None
            sink = recorded if name in record else None
            read, write = splice(latent_model, name, untouched, latent_edits.get(name), sink)
            chains.setdefault(latent_model.hook_point, []).append(read)
            chains.setdefault(latent_model.output_hook_point, []).append(write)
        return {place: in_turn(chain) for place, chain in chains.items()}, recorded

    def untouched_positions(self, inputs: ModelInputs) -> Tensor:
        """Positions that a latent model with ``skips_special_tokens`` leaves as they are, ``[batch, pos]``, bool.

        The first real token of a row (its activation is huge in most models), special tokens and padding; never the
        answer position.
        """
        mask = inputs.attention_mask.bool()
        untouched = ~mask | (mask.cumsum(-1) == 1) | torch.isin(inputs.tokens, self.special_token_ids())
        untouched[torch.arange(len(inputs), device=untouched.device), inputs.answer_positions] = False
        return untouched

    def gradients(
        self,
        inputs: ModelInputs,
        latent_models: Sequence[LatentModel],
        objective: Callable[[Tensor], Tensor],
        names: Sequence[str],
    ) -> tuple[SplicedRun, dict[str, Tensor]]:
        """Gradients of a scalar with respect to latent activations, by one forward and one backward.

        The gradient at a latent includes what flows through latent models above it. Parameters get no gradient, and the
        graph begins at the first latent model.

        Args:
            inputs: The batch.
            latent_models: Spliced in together.
            objective: Scalar of the answer logits ``[batch, vocab]``.
            names: Activation names.

        Returns:
            The run (detached) and the gradients ``[batch, pos, d_sae]`` by name.
        """
        leaves: dict[str, Tensor] = {}

        def watch(name: str) -> Edit:
            def require(activations: Tensor) -> Tensor:
                leaf = activations if activations.requires_grad else activations.detach().requires_grad_()
                leaves[name] = leaf
                return leaf

            return require

        modules = [item for item in latent_models if isinstance(item, nn.Module)]
        with torch.enable_grad(), frozen_parameters(self.model, *modules):
            run = self.run_spliced(inputs, latent_models, {name: watch(name) for name in names})
            grads = torch.autograd.grad(objective(run.answer_logits), [leaves[name] for name in names])
        activations = {name: leaf.detach() for name, leaf in leaves.items()}
        return SplicedRun(run.answer_logits.detach(), activations), dict(zip(names, grads, strict=True))

    @torch.no_grad()
    def ablate_latents(
        self,
        inputs: ModelInputs,
        latent_models: Sequence[LatentModel],
        name: str,
        rows: Tensor,
        columns: Tensor | None = None,
        row_budget: int | None = None,
    ) -> Tensor:
        """Answer logits with one latent at a time set to zero at the answer position, all latent models spliced in.

        The plain loop: every row is a whole forward. It is the reference that faster ways are held against.

        Args:
            inputs: The batch.
            latent_models: Spliced in together.
            name: Activation name of the latent model whose latents are ablated.
            rows: Pairs (example, latent), ``[n, 2]``.
            columns: Ids of the logits to return, ``[c]``; None: all.
            row_budget: Most rows in one forward; None: chosen so that the logits stay small.

        Returns:
            ``[n, c]``, in the order of ``rows``.

        Raises:
            AnalysisError: A row names an example or a latent that does not exist, or the budget is below one row.
        """
        width = {activation_name(item): item.d_sae for item in latent_models}.get(name, 0)
        _check_rows(rows, len(inputs), width, name, row_budget)
        if not len(rows):
            return torch.empty(0, self.vocab_size if columns is None else len(columns), device=inputs.tokens.device)
        results = []
        positions = inputs.answer_positions
        budget = row_budget or max(1, LOGIT_BUDGET // (inputs.tokens.shape[1] * self.vocab_size))
        for chunk in rows.split(budget):
            examples, latents = chunk.unbind(-1)

            def zero(activations: Tensor, examples: Tensor = examples, latents: Tensor = latents) -> Tensor:
                ablated = activations.clone()
                ablated[torch.arange(len(examples), device=ablated.device), positions[examples], latents] = 0
                return ablated

            logits = self.run_spliced(inputs.select(examples), latent_models, {name: zero}).answer_logits
            results.append(logits if columns is None else logits[:, columns])
        return torch.cat(results)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of logits at each position."""


def _keep(names: Sequence[str], cache: dict[str, Tensor], *, stop: bool = False) -> dict[str, Edit]:
    """Edits that change nothing and keep copies; with ``stop`` the last of them ends the forward."""

    def keep(name: str) -> Edit:
        def store(activations: Tensor) -> Tensor:
            cache[name] = activations.detach().clone()
            if stop and len(cache) == len(set(names)):
                raise _AllCaptured
            return activations

        return store

    return {name: keep(name) for name in names}


def _check_rows(rows: Tensor, examples: int, latents: int, name: str, row_budget: int | None) -> None:
    if row_budget is not None and row_budget < 1:
        raise AnalysisError(f"row_budget is {row_budget}; an ablation needs room for one row at least.")
    if latents == 0:
        raise AnalysisError(f"No latent model with the activations {name!r} is spliced in.")
    if len(rows) and (rows.min() < 0 or rows[:, 0].max() >= examples or rows[:, 1].max() >= latents):
        raise AnalysisError(
            f"Rows to ablate at {name} go beyond the batch of {examples} examples or the {latents} latents: "
            f"largest are example {int(rows[:, 0].max())} and latent {int(rows[:, 1].max())}."
        )


def _check_distinct(latent_models: Sequence[LatentModel]) -> None:
    readers: dict[str, LatentModel] = {}
    for item in latent_models:
        other = readers.setdefault(activation_name(item), item)
        if other is not item:
            raise HookPointError(
                f"The latent models {other.name!r} and {item.name!r} both read at {item.hook_point}: their "
                "latents would share a name, and an edit of one would be an edit of both. Analyse them in two sessions."
            )


@contextlib.contextmanager
def frozen_parameters(*modules: nn.Module) -> Iterator[None]:
    """Turn parameter gradients off for the duration of a block and restore each flag afterwards."""
    flags = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
