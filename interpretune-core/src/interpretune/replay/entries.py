"""Where replays begin, and which latent models run in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from attrs import frozen

from interpretune.activations.hook_names import canonical
from interpretune.errors import ReplayRefusedError
from interpretune.latents.latent_model import (
    HasDecoderRows,
    LatentModel,
    activation_name,
    has_error_term,
    read_points,
    written_points,
)
from interpretune.replay.engine import ReplayEngine


@frozen(eq=False)
class Entry:
    """Where a replay begins that changes latents of one latent model, and of none below it.

    Attributes:
        start: First block to run.
        hands_in: Whether the latent model's output is the residual stream before that block.
        puts_output: Whether the output is computed from the stored one; False: the latent model is spliced in, and its
            latents are edited.
        joins: Whether its rows can run beside rows from below: they begin with a residual stream of their own, or the
            latent model leaves rows from below as they are.
        above: Activation names of the other latent models that run.
    """

    start: int
    hands_in: bool
    puts_output: bool
    joins: bool
    above: tuple[str, ...]


def find_entries(engine: ReplayEngine, latent_models: Sequence[LatentModel]) -> dict[str, Entry]:
    """Where replays begin, by activation name.

    Raises:
        ReplayRefusedError: As ``span_of``.
    """
    spans = {activation_name(item): span_of(engine, item) for item in latent_models}
    hook_points = {
        activation_name(item): set(map(canonical, (*read_points(item), *written_points(item))))
        for item in latent_models
    }
    written = {activation_name(item): canonical(item.output_hook_point) for item in latent_models}
    entries = {}
    for item in latent_models:
        name = activation_name(item)
        others = [activation_name(other) for other in latent_models if other is not item]
        linear = len(written_points(item)) == 1 and is_linear(item)
        depth = spans[name].written if linear else spans[name].first
        alone = not any(written[name] in hook_points[other] for other in others)
        hands_in = linear and alone and not math.isclose(depth % 1, 0.5)
        start = math.ceil(depth) if hands_in else math.floor(depth)
        # a latent model that reads below the first block and writes above it must run too
        while spanning := [int(spans[other].first) for other in others if spans[other].reaches(start)]:
            start, hands_in = min(spanning), False
        above = tuple(other for other in others if start <= spans[other].last and not spans[other].rests(start))
        begins = any(spans[other].last == start for other in others)  # rows of those begin with what it writes
        reads_here = spans[name].first >= start  # else rows from below have passed what it reads
        joins = hands_in or (linear and alone and has_error_term(item) and reads_here and not begins)
        entries[name] = Entry(start, hands_in, linear, joins and start < engine.n_blocks, above)
    return entries


def is_linear(latent_model: LatentModel) -> bool:
    """Whether a latent model declares that its decoder is linear."""
    if not isinstance(latent_model, HasDecoderRows):
        return False
    return latent_model.decoder_rows(torch.zeros(0, dtype=torch.long)) is not None


@frozen
class Span:
    """From where to where in a model a latent model reads and writes, in the depths of ``ReplayEngine.depth``.

    Attributes:
        first: The first hook point.
        written: The first that it writes.
        last: The last hook point.
        error: Whether it has an error term.
    """

    first: float
    written: float
    last: float
    error: bool

    def rests(self, block: int) -> bool:
        """Whether it changes nothing in a row whose lowest change is in this block or above."""
        return self.error and self.written < block

    def reaches(self, block: int) -> bool:
        """Whether it must run below the block, because it writes above."""
        return self.first < block <= self.last and not self.rests(block)


def span_of(engine: ReplayEngine, latent_model: LatentModel) -> Span:
    """Where a latent model stands.

    Raises:
        ReplayRefusedError: It is outside all blocks, or changes the keys and values of the run in which it reads.
    """
    reads, writes = (list(map(engine.depth, points(latent_model))) for points in (read_points, written_points))
    if len(reads) > 1 and max(reads) > min(writes) and not has_error_term(latent_model):
        raise ReplayRefusedError(
            f"The latent model {latent_model.name!r} writes at {latent_model.output_hook_point} and reads above, in a "
            "run that has other keys and values than the one in which it writes; with an error term they are the same."
        )
    return Span(min(reads + writes), min(writes), max(reads + writes), has_error_term(latent_model))
