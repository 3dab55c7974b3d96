"""One spliced forward that stores what replays of single tokens need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from interpretune.activations.edits import Edit, Observer, in_turn
from interpretune.activations.finite import check_rows, rows_named
from interpretune.activations.hook_names import RESID_POST, RESID_PRE, canonical, in_layer
from interpretune.activations.hooked_model import AllCaptured, noted_last
from interpretune.activations.inputs import ModelInputs, Points
from interpretune.errors import HookPointError, ReplayRefusedError
from interpretune.latents.latent_model import LatentModel, activation_name, has_error_term
from interpretune.latents.splicing import Splice
from interpretune.replay.buckets import Bucket, length_buckets, one_prefix, together
from interpretune.replay.engine import ReadyContext, ReplayEngine
from interpretune.replay.entries import Entry, find_entries
from interpretune.replay.observed import NOTHING, Noted
from interpretune.replay.prefix import Prefix, Rows
from interpretune.replay.projected import Projected, blocks_above, find_projected
from interpretune.system.model_lock import model_lock

if TYPE_CHECKING:
    from interpretune.backends.backend import AnalysisBackend


LatentObserver = Callable[[Tensor, ModelInputs, Tensor], None]
"""Receives latents ``[b, pos, d_sae]`` of some examples of a batch, their inputs, and their ids ``[b]``."""


@frozen(eq=False)
class Kept:
    """What a prefill stores for replays.

    Attributes:
        engine: Reruns tokens.
        ready: Makes the context that the engine needs for replays.
        prefix: Keys and values.
        entries: Where replays begin, by activation name, from the lowest latent model to the highest.
        hidden: Residual stream at the points before the blocks at which replays begin, ``[n, d_model]``.
        outputs: What each latent model wrote at the points, ``[n, ...]``, by activation name.
        projected: Neurons whose rows begin above their block if they change nothing else, by activation name.
        everywhere: What suffix rows need at all positions, by activation name, or by hook point of the stream; filled
            when they first ask for it.
    """

    engine: ReplayEngine
    ready: ReadyContext
    prefix: Prefix
    entries: Mapping[str, Entry]
    hidden: Mapping[int, Tensor]
    outputs: Mapping[str, Tensor]
    projected: Mapping[str, Projected] = field(factory=dict)
    everywhere: dict[str, CleanRun] = field(factory=dict)

    @property
    def alone(self) -> dict[str, Entry]:
        """Where replays begin of rows that change one latent model alone, by activation name."""
        return {**self.entries, **{name: item.entry for name, item in self.projected.items()}}


@frozen(eq=False)
class CleanRun:
    """The clean run at all positions.

    Attributes:
        hidden: Residual stream before the block at which replays begin, ``[batch, pos, d_model]``; None: not needed.
        output: What the latent model wrote, ``[batch, pos, d_out]``; None: not needed.
    """

    hidden: Tensor | None
    output: Tensor | None


@frozen(eq=False)
class Prefill:
    """A forward with latent models spliced in, and what is needed to rerun its points.

    Attributes:
        backend: The backend that ran it.
        inputs: The batch.
        latent_models: Spliced in together, by activation name.
        points: The tokens that can be rerun.
        logits: At the points, ``[n, vocab]``.
        latents: At the points, ``[n, d_sae]``, by activation name; inactive latents are 0.
        untouched: Points that a latent model leaves unchanged, ``[n]``, by activation name.
        kept: What replays need; None if they were refused.
    """

    backend: AnalysisBackend
    inputs: ModelInputs
    latent_models: Mapping[str, LatentModel]
    points: Points
    logits: Tensor
    latents: Mapping[str, Tensor]
    untouched: Mapping[str, Tensor]
    kept: Kept | None

    def run_rows(
        self,
        name: str,
        rows: Rows,
        output: Tensor | None,
        latent_edits: Mapping[str, Edit],
        columns: Tensor | None = None,
        noted: Noted = NOTHING,
    ) -> Tensor:
        """Run rows from one latent model up.

        Args:
            name: Activation name of the lowest latent model that the rows change.
            rows: Which points.
            output: What that latent model writes, ``[n, d_out]``; None: it is spliced in.
            latent_edits: Edits of latents ``[n, 1, d_sae]`` of spliced latent models, by activation name.
            columns: Ids of the logits wanted, ``[c]``; None: all.
            noted: What is noted and held on the way.

        Returns:
            ``[n, c]``.

        Raises:
            ReplayRefusedError: The model cannot be replayed.
        """
        kept = self.require_kept()
        entry = kept.entries[name]
        hands_in = output is not None and entry.hands_in
        hidden = output if output is not None and hands_in else kept.hidden[entry.start][rows.points]
        runs = {*entry.above} if hands_in else {*entry.above, name}
        spliced = [key for key in self.latent_models if key in runs]  # where two write, the order decides who is last

        def run(edits: Mapping[str, Edit]) -> Tensor:
            return kept.engine.replay(kept.prefix, rows, entry.start, hidden, edits, columns)

        splices = self._splices(spliced, rows, {name: output}, latent_edits, noted)
        with model_lock(self.backend.model), kept.ready():
            return run(self.backend.chain(splices, run=run))

    def run_joined(
        self,
        names: Sequence[str],
        upper: str | None,
        rows: Rows,
        hidden: Tensor,
        outputs: Mapping[str, tuple[Tensor, Tensor]],
        columns: Tensor | None,
        noted: Noted = NOTHING,
    ) -> Tensor:
        """Run rows of several latent models from the block at which they begin, or have come to, up to a higher one.

        Args:
            names: Activation names of those whose rows begin at the block; all of them join (``Entry.joins``).
            upper: Activation name of the one at whose block to stop; None: run up to the logits.
            rows: Which points.
            hidden: Residual stream before the block, ``[n, d_model]``.
            outputs: What latent models within the block write, and in which rows, ``[m]`` and ``[m, d_out]``.
            columns: Ids of the logits wanted, ``[c]``; None: all.
            noted: What is noted and held on the way.

        Returns:
            The residual stream before the block of ``upper``, ``[n, d_model]``, or logits, ``[n, c]``.

        Raises:
            ReplayRefusedError: The model cannot be replayed.
        """
        kept = self.require_kept()
        start, seen = kept.alone[names[0]].start, list[Tensor]()
        runs = self.between(names[0], upper)
        splices = self._splices([key for key in self.latent_models if key in runs], rows, {}, {}, noted)
        puts = {canonical(self.latent_models[name].output_hook_point): _put(*given) for name, given in outputs.items()}

        def run(edits: Mapping[str, Edit]) -> Tensor:
            return kept.engine.replay(kept.prefix, rows, start, hidden, edits, columns)

        with model_lock(self.backend.model), contextlib.suppress(AllCaptured), kept.ready():
            edits = self.backend.chain(splices, puts, run)
            if upper is not None:
                at, stop = in_layer(kept.alone[upper].start, RESID_PRE), noted_last(seen)
                edits[at] = in_turn([edits[at], stop]) if at in edits else stop
            return run(edits)
        return seen[0].squeeze(1)

    def running(self, name: str) -> set[str]:
        """Activation names of the latent models that run in rows that change one of them alone."""
        entry = self.require_kept().alone[name]
        return {*entry.above} if entry.hands_in else {*entry.above, name}

    def between(self, name: str, upper: str | None) -> set[str]:
        """The same, without those that run in rows that change a higher one; None: of all up to the logits."""
        return self.running(name) - (set() if upper is None else self.running(upper))

    def _splices(
        self,
        names: Sequence[str],
        rows: Rows,
        outputs: Mapping[str, Tensor | None],
        latent_edits: Mapping[str, Edit],
        noted: Noted,
    ) -> list[Splice]:
        """Splices of latent models, by activation name, in a replay of rows."""
        return [
            noted.splice(
                name,
                self.latent_models[name],
                self._untouched_rows(name, rows),
                latent_edits.get(name),
                outputs.get(name),
            )
            for name in names
        ]

    def require_kept(self) -> Kept:
        """What replays need.

        Raises:
            ReplayRefusedError: They were refused for this model.
        """
        if self.kept is None:
            raise ReplayRefusedError("This prefill keeps nothing to replay from; the warning before it says why.")
        return self.kept

    def lowest(self, names: Sequence[str]) -> str:
        """The lowest in the model of some latent models, by activation name."""
        return next(name for name in self.require_kept().entries if name in names)

    def _untouched_rows(self, name: str, rows: Rows) -> Tensor | None:
        untouched = self.untouched[name][rows.points]
        return untouched.unsqueeze(-1) if bool(untouched.any()) else None


def _put(rows: Tensor, output: Tensor) -> Edit:
    """An edit that writes ``[m, d_out]`` in some rows of ``[n, 1, ...]``."""
    return lambda activations: activations.index_put(
        (rows,), output.reshape(len(rows), *activations.shape[1:]).to(activations.dtype)
    )


@torch.no_grad()
def prefill(
    backend: AnalysisBackend,
    inputs: ModelInputs,
    latent_models: Sequence[LatentModel],
    points: Points | None = None,
    observers: Mapping[str, LatentObserver] | None = None,
    engine: ReplayEngine | None = None,
    *,
    buckets: bool = True,
) -> Prefill:
    """Run a batch with latent models spliced in and store what replays of the points need.

    Args:
        backend: Runs the model.
        inputs: The batch.
        latent_models: Spliced in together.
        points: Tokens to rerun; None: the answer position of each example.
        observers: Receive the latents at all positions, by activation name; other latents are not stored.
        engine: Reruns tokens; None: nothing is stored.
        buckets: Split the batch by length where that saves work on padding.

    Raises:
        HookPointError: A hook point is missing, or two latent models read at one hook point without an alias.
        ReplayRefusedError: The engine finds that the model cannot be replayed exactly.
        NotFiniteError: Logits or latents at the points are NaN or infinite.
    """
    points = inputs.answers if points is None else points
    models = {activation_name(item): item for item in latent_models}
    observers = observers or {}
    for name in observers:
        if name not in models:
            raise HookPointError(f"No spliced latent model has the activations {name!r}. Spliced: {list(models)}.")
    entries = find_entries(engine, latent_models) if engine is not None else {}
    whole = Bucket(inputs.answers.examples, inputs, points, torch.arange(len(points), device=points.examples.device))
    splits = buckets and backend.follows_longest_row(inputs) is None  # of which there is one for each bucket
    parts = length_buckets(inputs, points) if splits else [whole]
    seen = []
    for part in parts:
        with rows_named(part.examples):
            seen.append(_run_bucket(backend, part, models, observers, entries, engine))

    def joined(values: Sequence[Mapping[Any, Tensor]]) -> dict[Any, Tensor]:
        return {key: together(parts, [item[key] for item in values]) for key in values[0]}

    kept = None
    if engine is not None:
        prefix = one_prefix(parts, [item.prefix for item in seen if item.prefix is not None], points)
        in_order = {name: entries[name] for name in seen[0].outputs}  # in a block, only the forward tells what is lower
        hidden, outputs = joined([item.hidden for item in seen]), joined([item.outputs for item in seen])
        ready = engine.prepare(_lowest_start(entries, engine))
        kept = Kept(engine, ready, prefix, in_order, hidden, outputs)
        kept = evolve(kept, projected=find_projected(kept, models, joined([item.latents for item in seen])))
    logits = together(parts, [item.logits for item in seen])
    nothing = torch.zeros(len(points), dtype=torch.bool, device=logits.device)
    untouched = {
        name: nothing if (left := backend.untouched_by(item, inputs)) is None else points.of(left)
        for name, item in models.items()
    }
    latents = joined([item.latents for item in seen])
    for name, values in latents.items():
        reason = "The logits are: look at the latent model's weights, and at what it reads."
        check_rows(values, f"Latents of {name}", reason, points.examples)
    return Prefill(backend, inputs, models, points, logits, latents, untouched, kept)


@frozen(eq=False)
class _Seen:
    """Results of the forward of one bucket at its points."""

    logits: Tensor
    prefix: Prefix | None
    latents: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    hidden: Mapping[int, Tensor]


def _run_bucket(
    backend: AnalysisBackend,
    bucket: Bucket,
    models: Mapping[str, LatentModel],
    observers: Mapping[str, LatentObserver],
    entries: Mapping[str, Entry],
    engine: ReplayEngine | None,
) -> _Seen:
    inputs, points = bucket.inputs, bucket.points
    latents: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    hidden: dict[int, Tensor] = {}

    def see_latents(name: str) -> Observer:
        at_points = name not in observers and has_error_term(models[name])  # the splice is the identity

        def see(values: Tensor) -> None:
            if name in observers:
                observers[name](values, inputs, bucket.examples)
            latents[name] = values.squeeze(1).clone() if at_points else points.of(values)

        return see

    def keep_hidden(block: int) -> Edit:
        def keep(activations: Tensor) -> Tensor:
            hidden[block] = points.of(activations)
            return activations

        return keep

    splices = [
        Splice(
            item,
            untouched=backend.untouched_by(item, inputs),
            see_latents=see_latents(name),
            see_at=None if name in observers else points,
            see_output=lambda written, name=name: outputs.__setitem__(name, points.of(written)),  # type: ignore[misc]
        )
        for name, item in models.items()
    ]
    starts = {entry.start for entry in entries.values() if not (entry.hands_in and entry.puts_output)}
    starts |= set() if engine is None else set(blocks_above(engine, models).values())
    first = {stream_before(engine, block): keep_hidden(block) for block in starts if engine is not None}
    edits = backend.chain(splices, first, lambda edits: backend.forward(inputs, edits, points))
    if engine is None:
        return _Seen(backend.forward(inputs, edits, points), None, latents, outputs, hidden)
    logits, prefix = engine.prefill(inputs, edits, points, _lowest_start(entries, engine))
    return _Seen(logits, prefix, latents, outputs, hidden)


def stream_before(engine: ReplayEngine, block: int) -> str:
    """Hook point of the residual stream before a block, or after the last one."""
    return in_layer(block, RESID_PRE) if block < engine.n_blocks else in_layer(block - 1, RESID_POST)


def _lowest_start(entries: Mapping[str, Entry], engine: ReplayEngine) -> int:
    return min((entry.start for entry in entries.values()), default=engine.n_blocks)
