"""Replaces activations of a model by the reconstruction of a latent model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor, where

from interpretune.activations.edits import Edit, Observer, in_turn
from interpretune.activations.hook_names import canonical
from interpretune.activations.hooked_model import AllCaptured
from interpretune.activations.inputs import Points
from interpretune.errors import HookPointError
from interpretune.latents.latent_model import LatentModel, has_error_term, read_points, reconstruct, written_points

RunsEdits = Callable[[dict[str, Edit]], object]
"""Runs a model with edits by hook point."""

WhichSlots = Callable[[int, int], Tensor]
"""A mask ``[rows, length]``, bool, for a forward with this many rows and slots."""


@frozen(eq=False)
class Splice:
    """One latent model in one forward.

    With an error term, the output is ``x + decode(edited latents) - decode(latents)``; a decoder with a skip connection
    gets ``x`` as well, both times. Without edits that is the
    identity and costs nothing. Gradients with respect to ``x`` then pass as through the identity.

    Attributes:
        latent_model: The latent model.
        untouched: Positions that are left unchanged, ``[batch, pos]``, bool, or a function that gives them for a
            number of rows and slots; None: no position.
        edit: Change of the latents ``[batch, pos, d_sae]``.
        see_latents: Receives the latents after the edit.
        see_at: Where ``see_latents`` is wanted, ``[n, 1, d_sae]``, in a splice that writes nothing of what it reads;
            None: everywhere.
        see_output: Receives what stands where it has written, ``[batch, pos, ...]``, at each such hook point.
        output: Written instead of a reconstruction, ``[batch, d_out]`` at one position per row, by a latent model that
            writes at one hook point; it reads only to be seen then.
    """

    latent_model: LatentModel
    untouched: Tensor | WhichSlots | None = None
    edit: Edit | None = None
    see_latents: Observer | None = None
    see_at: Points | None = None
    see_output: Observer | None = None
    output: Tensor | None = None

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return self.output is None and self.edit is None and has_error_term(self.latent_model)

    @property
    def only_reads(self) -> bool:
        """Whether it writes nothing of what it reads."""
        return self.output is not None or self.is_identity

    @property
    def reads_ahead(self) -> bool:
        """Whether it needs a run in which it only reads, because it may have to write before it has read all."""
        return self.output is None and not self.is_identity and len(read_points(self.latent_model)) > 1

    def begin(self, joins: Collection[str] = ()) -> Splicing:
        """Make its edits for one forward.

        Args:
            joins: Canonical names of the hook points where what it writes is added to what others have written.
        """
        return Splicing(self, joins)


class Splicing:
    """What a splice does in a forward: it reads and encodes, decodes and writes.

    Attributes:
        reads: Hook points and edits; none if an output is given.
        writes: Hook points and edits, in the order in which the model reaches them.
        ready: Whether it has read all, so that it can write.
        stays_ready: Whether it writes the same in the next forward.
    """

    def __init__(self, splice: Splice, joins: Collection[str]) -> None:
        self._splice, self._joins, self._model = splice, joins, splice.latent_model
        reads, writes = read_points(self._model), written_points(self._model)
        unread = splice.output is not None and splice.see_latents is None
        self.reads = [] if unread else [(name, self._read(i)) for i, name in enumerate(reads)]
        self.writes = [(name, self._write(i, name)) for i, name in enumerate(writes)]
        self.ready = self.stays_ready = False
        self._activations: dict[int, Tensor] = {}
        self._untouched: Tensor | None = None
        self._clean: Tensor | None = None
        self._output: Tensor | None = None
        self._start = 0

    def _read(self, index: int) -> Edit:
        splice, several = self._splice, len(read_points(self._model)) > 1

        def read(activations: Tensor) -> Tensor:
            if splice.is_identity and splice.see_latents is None:
                self.ready = True
                return activations
            flat = activations.flatten(2)
            untouched = _at(splice.untouched, flat)
            if splice.only_reads and splice.see_at is not None:
                flat = splice.see_at.of(flat).unsqueeze(1)
                untouched = None if untouched is None else splice.see_at.of(untouched).unsqueeze(1)
            # until the last is read, the model may write into what was read first
            self._activations[index] = flat.clone() if several else flat
            if len(self._activations) == len(self.reads):
                parts = [self._activations.pop(i) for i in range(len(self.reads))]
                self._encode(torch.cat(parts, dim=-1) if several else flat, untouched)
            return activations

        return read

    def _encode(self, flat: Tensor, untouched: Tensor | None) -> None:
        splice, keeps_error = self._splice, has_error_term(self._model) and not self._splice.only_reads
        check_width(self._model, flat.shape[-1])
        inputs = flat.detach() if keeps_error else flat
        latents = self._model.encode(inputs)
        if untouched is not None:
            latents = latents.masked_fill(untouched.unsqueeze(-1), 0)
        self._clean = None
        if keeps_error:  # before the edit, which may write into the latents; a copy, as buffers go
            self._clean = reconstruct(self._model, latents, inputs).detach().clone()
        if splice.edit is not None:
            latents = splice.edit(latents.clone() if latents.requires_grad else latents)
        if splice.see_latents is not None:
            splice.see_latents(latents)
        self._output = None if splice.only_reads else reconstruct(self._model, latents, inputs)
        self.ready = True

    def _write(self, index: int, name: str) -> Edit:
        splice, adds = self._splice, canonical(name) in self._joins

        def write(activations: Tensor) -> Tensor:
            if splice.output is not None:
                flat = activations.flatten(2)
                output = splice.output.reshape(flat.shape).to(flat.dtype)
                activations = self._where_spliced(flat, output).reshape(activations.shape)
            elif not self.ready and not (splice.is_identity and len(self.reads) > 1):
                raise reads_after_it_writes(self._model)
            elif not splice.is_identity:
                activations = self._written(activations, first=index == 0, adds=adds)
            if index + 1 == len(self.writes) and not self.stays_ready:
                self.ready, self._output, self._clean = False, None, None
            if splice.see_output is not None:
                splice.see_output(activations)
            return activations

        return write

    def _written(self, activations: Tensor, *, first: bool, adds: bool) -> Tensor:
        flat = activations.flatten(2)
        assert self._output is not None
        self._start = 0 if first else self._start
        here = slice(self._start, self._start + flat.shape[-1])
        self._start = here.stop
        # a copy: the latent model may hold on to what it returns, and the model may write into what it is given
        output = self._output[..., here].to(flat.dtype, copy=True)
        if self._clean is not None:
            output = flat + output - self._clean[..., here].to(flat.dtype)
        elif adds:
            output = flat + output
        return self._where_spliced(flat, output).reshape(activations.shape)

    def _where_spliced(self, flat: Tensor, output: Tensor) -> Tensor:
        """The output, and the activations as they were where tokens are left alone."""
        untouched = _at(self._splice.untouched, flat)
        return output if untouched is None else where(untouched.unsqueeze(-1), flat, output)


def _at(untouched: Tensor | WhichSlots | None, flat: Tensor) -> Tensor | None:
    return untouched(*flat.shape[:2]) if callable(untouched) else untouched


def edits_of(splices: Sequence[Splice], first: Mapping[str, Edit] | None, run: RunsEdits | None) -> dict[str, Edit]:
    """One edit per hook point from several splices; see ``AnalysisBackend.chain``."""
    splicings: list[Splicing] = []
    ahead: list[Splicing] = []
    written: set[str] = set()
    for splice in sorted(splices, key=_comes_late):
        item = splice.latent_model
        splicing = splice.begin(written - set(map(canonical, read_points(item))))
        splicings.append(splicing)
        if not has_error_term(item):
            written.update(map(canonical, written_points(item)))
        if splice.reads_ahead:
            splicing.stays_ready = True
            ahead.append(splicing)
    while waiting := [item for item in ahead if not item.ready]:
        if run is None:
            raise HookPointError(
                "A latent model that reads at several hook points is encoded in a run of its own before it writes, and "
                "there is none before the forwards of another loop, such as generation. Leave it out there."
            )
        with contextlib.suppress(_Ready):
            run(_joined(splicings, ahead, waiting, first))
    for splicing in ahead:
        splicing.stays_ready = False
    return _joined(splicings, ahead, [], first)


class _Ready(AllCaptured):
    """Raised in a run when a latent model has read at all its hook points."""


def _joined(
    splicings: Sequence[Splicing],
    ahead: Sequence[Splicing],
    waiting: Sequence[Splicing],
    first: Mapping[str, Edit] | None,
) -> dict[str, Edit]:
    """Edits of a run: latent models that read ahead only read while they wait, and then only write."""
    chains: dict[str, list[Edit]] = {canonical(name): [edit] for name, edit in (first or {}).items()}
    for item in splicings:
        if item in waiting:
            edits = [(name, _until_ready(item, read)) for name, read in item.reads]
        else:
            edits = item.writes if item in ahead else [*item.reads, *item.writes]
        for name, edit in edits:
            chains.setdefault(canonical(name), []).append(edit)
    return {point: in_turn(chain) for point, chain in chains.items()}


def _until_ready(splicing: Splicing, read: Edit) -> Edit:
    """A read that ends the run once it is the last."""

    def apply(activations: Tensor) -> Tensor:
        read(activations)
        if splicing.ready:
            raise _Ready
        return activations

    return apply


def _comes_late(splice: Splice) -> tuple[bool, bool]:
    """For sorting: what replaces a hook point, then what adds to it, then what reads it."""
    return reads_where_it_writes(splice.latent_model), has_error_term(splice.latent_model)


def reads_where_it_writes(latent_model: LatentModel) -> bool:
    """Whether it is an autoencoder or a crosscoder, not a transcoder."""
    return not set(map(canonical, read_points(latent_model))).isdisjoint(map(canonical, written_points(latent_model)))


def check_width(latent_model: LatentModel, width: int) -> None:
    """Refuse a latent model whose input has another width than the hook point (``HookPointError``)."""
    if width != latent_model.d_in:
        raise HookPointError(
            f"The latent model {latent_model.name!r} reads {latent_model.d_in} numbers at "
            f"{', '.join(read_points(latent_model))}, where this model has {width}. Was it trained on another model?"
        )


def reads_after_it_writes(latent_model: LatentModel) -> HookPointError:
    """The message for a latent model whose input a forward reaches after its output."""
    return HookPointError(
        f"The latent model {latent_model.name!r} reads at {latent_model.hook_point}, which this model reaches after "
        f"{latent_model.output_hook_point}, where it writes. A latent model reads where it writes or before; are its "
        "two hook points exchanged?"
    )
