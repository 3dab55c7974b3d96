"""Exact ablation at any position of an example, read at later positions: rows rerun the tokens from there on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from interpretune.activations.edits import Edit
from interpretune.activations.hook_names import RESID_PRE, in_layer
from interpretune.activations.hooked_model import AllCaptured, noted_last
from interpretune.activations.inputs import Points
from interpretune.errors import AnalysisError
from interpretune.latents.splicing import Splice
from interpretune.replay.ablation import (
    begun,
    changed_output,
    check_finite,
    check_rows_and_budget,
    groups_of,
    run_naively,
)
from interpretune.replay.budgets import naive_budget, replay_budget
from interpretune.replay.observed import Held, Observed, noting
from interpretune.replay.prefill import CleanRun, Prefill, stream_before
from interpretune.replay.rows import LatentRows
from interpretune.replay.suffix_rows import SuffixRows
from interpretune.system.model_lock import model_lock

WORTH_PADDING = 0.9
"""A row runs beside longer ones if it has at least this share of their tokens."""
WORTH_RUNNING = 512
"""Tokens of one replay below which shorter rows join it: products of few rows are slow."""


@torch.no_grad()
def ablate_from(
    prefill: Prefill,
    rows: LatentRows,
    wanted: Tensor | None = None,
    columns: Tensor | None = None,
    row_budget: int | None = None,
    *,
    naive: bool = False,
    self_check: bool = True,
    observed: Observed | None = None,
) -> Tensor:
    """Logits at later positions with latents set at the rows' tokens, all latent models spliced in.

    A row runs the tokens of its example from its point to the last position where logits are wanted. Latents are set
    at its point alone; what follows from that at later tokens is computed anew. The first time, a few rows are compared
    with whole forwards.

    Args:
        prefill: The clean run, with points at all tokens whose latents are set.
        rows: What to set where; the result is in this order.
        wanted: Positions where logits are wanted, each at the row's point or after it, ``[n, w]``; None: the answer
            position of the row's example.
        columns: Ids of the logits wanted, ``[c]``; None: all.
        row_budget: Most tokens that run at a time (rows x tokens of each), but at least one row; with whole forwards,
            most rows. None: chosen from the free memory.
        naive: Use the plain loop, a whole forward for each row.
        self_check: Make the comparison, if it has not been made for these latent models.
        observed: What the rows note on their way; rows that are not computed note nothing.

    Returns:
        ``[n, w, c]``.

    Raises:
        AnalysisError: A row names an example or a latent that does not exist, logits are wanted before the row's point
            or at padding, or the budget is below one.
        NotFiniteError: Logits with latents set are NaN or infinite.
    """
    with model_lock(prefill.backend.model):
        check_rows_and_budget(prefill, rows, row_budget)
        at = _wanted_positions(prefill, rows, wanted)
        prefill = prefill if observed is None else observed.begins_for(prefill)
        replays = not naive and prefill.kept is not None
        groups = groups_of(prefill, rows, whole=not replays)
        if groups and replays and self_check:
            replays = prefill.backend.replays.trusts_suffixes(prefill)
        width = prefill.backend.vocab_size if columns is None else len(columns)
        result = prefill.logits.new_empty(len(rows), at.shape[1], width)
        changed = torch.zeros(len(rows), dtype=torch.bool, device=at.device)
        for names, which in groups.items():
            changed[which] = True
            suffixes = replays and (observed is None or observed.runs_in(prefill, names))
            chunks = _chunks(prefill, rows, at, which, columns, row_budget) if suffixes else None
            for chunk in which.split(row_budget or naive_budget(prefill)) if chunks is None else chunks:
                run = run_naively if chunks is None else _replay_suffixes
                noted = None if observed is None else observed.of_rows(chunk)
                result[chunk] = run(prefill, rows.select(chunk), names, columns, at[chunk], noted)
        if not bool(changed.all()):
            clean = (~changed).nonzero().flatten()
            result[clean] = clean_logits(prefill, prefill.points.examples[rows.points[clean]], at[clean], columns)
        check_finite(prefill, rows, result)
        return result


def _wanted_positions(prefill: Prefill, rows: LatentRows, wanted: Tensor | None) -> Tensor:
    """Where logits are wanted, ``[n, w]``."""
    points, inputs = prefill.points.select(rows.points), prefill.inputs
    if wanted is None:
        wanted = inputs.answer_positions[points.examples].unsqueeze(-1)
    if wanted.ndim != 2 or len(wanted) != len(rows) or not wanted.shape[1]:
        raise AnalysisError(f"wanted is {tuple(wanted.shape)}; expected [{len(rows)} rows, positions].")
    inside = (wanted >= points.positions.unsqueeze(-1)) & (wanted < inputs.tokens.shape[1])
    real = inputs.attention_mask[points.examples.unsqueeze(-1), wanted.clamp(0, inputs.tokens.shape[1] - 1)].bool()
    if not bool((good := inside & real).all()):
        row, column = (~good).nonzero()[0].tolist()
        raise AnalysisError(
            f"Row {row} sets latents at position {int(points.positions[row])} of example {int(points.examples[row])} "
            f"and wants logits at {int(wanted[row, column])}; expected a token of the example there or after it."
        )
    return wanted


def _chunks(
    prefill: Prefill, rows: LatentRows, wanted: Tensor, which: Tensor, columns: Tensor | None, row_budget: int | None
) -> Iterator[Tensor]:
    """Rows that run together, ids ``[k]``: of similar lengths, those of one example side by side."""
    budget = row_budget or replay_budget(prefill, columns)
    points = rows.points[which]
    lengths, order = (wanted[which].amax(-1) - prefill.points.positions[points] + 1).sort(stable=True, descending=True)
    first, tokens = 0, lengths.tolist()
    while first < len(order):
        stop, longest = first, tokens[first]
        while stop < len(order) and (stop == first or (stop + 1 - first) * longest <= budget):
            if tokens[stop] < WORTH_PADDING * longest and (stop - first) * longest >= WORTH_RUNNING:
                break
            stop += 1
        chunk = order[first:stop]
        first = stop
        yield which[chunk[points[chunk].argsort(stable=True)]]


def _replay_suffixes(
    prefill: Prefill,
    rows: LatentRows,
    names: tuple[str, ...],
    columns: Tensor | None,
    wanted: Tensor,
    observed: Observed | None = None,
) -> Tensor:
    lowest, kept = prefill.lowest(names), prefill.require_kept()
    points = prefill.points.select(rows.points)
    suffixes = SuffixRows.of(prefill.inputs, kept.prefix, points.examples, points.positions, wanted)
    first_token = torch.zeros_like(points.positions)
    edits: dict[str, Edit] = {name: item.edit(first_token) for name, item in rows.changes.items() if name in names}
    output = None
    if lowest in kept.projected and len(names) == 1:
        entry = kept.alone[lowest]
        hidden, runs = suffixes.of_tokens(_stream(prefill, entry.start)), {*entry.above}
        hidden[:, 0] = begun(prefill, lowest, rows)
    else:
        entry, clean = kept.entries[lowest], _clean_run(prefill, lowest)
        if clean.output is not None:
            del edits[lowest]
            output = suffixes.of_tokens(clean.output)
            output[:, 0] = changed_output(prefill, lowest, rows.points, rows.changes[lowest])
        if clean.hidden is None:
            assert output is not None
            hidden, runs = output, {*entry.above}
        else:
            hidden, runs = suffixes.of_tokens(clean.hidden), {*entry.above, lowest}

    def held(names: list[str]) -> dict[str, Held]:
        clean = observed.clean(prefill, names) if observed else {}
        return {name: item.of(suffixes.of_tokens) for name, item in clean.items()}

    def run(edits: Mapping[str, Edit]) -> Tensor:
        return kept.engine.replay_suffixes(kept.prefix, suffixes, entry.start, hidden, edits, columns)

    tokens = points.examples, suffixes.positions, first_token
    with noting(observed, names, tokens, held, runs=runs) as noted, kept.ready():
        splices = []
        for name, model in prefill.latent_models.items():
            if name in runs:
                left = prefill.backend.untouched_by(model, prefill.inputs)
                left = None if left is None else suffixes.of_tokens(left)
                splices.append(noted.splice(name, model, left, edits.get(name), output if name == lowest else None))
        return run(prefill.backend.chain(splices, run=run))


def _stream(prefill: Prefill, block: int) -> Tensor:
    """The residual stream before a block in the model as it is, ``[batch, pos, d_model]``."""
    kept = prefill.require_kept()
    name = stream_before(kept.engine, block)
    if name not in kept.everywhere:
        kept.everywhere[name] = CleanRun(prefill.backend.capture(prefill.inputs, [name])[name], None)
    stream = kept.everywhere[name].hidden
    assert stream is not None, "that is all there is of it"
    return stream


def _clean_run(prefill: Prefill, name: str) -> CleanRun:
    """What replays that change a latent model begin with, at all positions, by a forward when it is first wanted."""
    kept, backend, inputs = prefill.require_kept(), prefill.backend, prefill.inputs
    if name not in kept.everywhere:
        entry = kept.entries[name]
        needs_hidden, needs_output = not (entry.hands_in and entry.puts_output), entry.puts_output
        hidden: list[Tensor] = []
        output: list[Tensor] = []

        def keep(activations: Tensor) -> Tensor:
            hidden.append(activations.clone())
            return activations

        splices = [
            Splice(
                model,
                backend.untouched_by(model, inputs),
                see_output=noted_last(output) if needs_output and key == name else None,
            )
            for key, model in prefill.latent_models.items()
        ]
        before = keep if needs_output else noted_last(hidden)
        first = {in_layer(entry.start, RESID_PRE): before} if needs_hidden else {}
        with contextlib.suppress(AllCaptured):
            backend.forward(inputs, backend.chain(splices, first, lambda edits: backend.forward(inputs, edits)))
        kept.everywhere[name] = CleanRun(
            hidden[-1] if needs_hidden else None, output[0].flatten(2).clone() if needs_output else None
        )
    return kept.everywhere[name]


@torch.no_grad()
def clean_logits(prefill: Prefill, examples: Tensor, wanted: Tensor, columns: Tensor | None = None) -> Tensor:
    """Logits without changes: those of the prefill's points, of other tokens by one more forward.

    Args:
        prefill: The clean run.
        examples: Example of each row, ``[n]``.
        wanted: Positions where logits are wanted, ``[n, w]``.
        columns: Ids of the logits wanted, ``[c]``; None: all.

    Returns:
        ``[n, w, c]``.
    """
    inputs, where = prefill.inputs, prefill.points
    known = torch.full(inputs.tokens.shape, -1, device=wanted.device)
    known[where.examples, where.positions] = torch.arange(len(where), device=wanted.device)
    examples = examples.unsqueeze(-1).expand_as(wanted)
    logits = prefill.logits
    if bool((known[examples, wanted] < 0).any()):
        missing = torch.stack([examples.flatten(), wanted.flatten()])[:, known[examples, wanted].flatten() < 0]
        new = Points(*missing.unique(dim=1))
        edits, _ = prefill.backend.splice_edits(inputs, list(prefill.latent_models.values()))
        known[new.examples, new.positions] = torch.arange(len(new), device=wanted.device) + len(where)
        logits = torch.cat([logits, prefill.backend.forward(inputs, edits, new)])
    logits = logits if columns is None else logits[:, columns]
    return logits[known[examples, wanted]]
