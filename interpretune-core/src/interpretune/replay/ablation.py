"""Exact ablation of chosen latents: by replays of single tokens, and by the plain loop as a reference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from interpretune.activations.edits import Edit
from interpretune.activations.finite import lacks_logits, rows_named
from interpretune.activations.hook_names import RESID_PRE, in_layer
from interpretune.activations.hooked_model import AllCaptured, noted_last
from interpretune.activations.inputs import Points
from interpretune.errors import AnalysisError, NotFiniteError
from interpretune.latents.identity import IdentityDictionary
from interpretune.latents.latent_model import HasDecoderRows
from interpretune.replay.budgets import naive_budget, replay_budget
from interpretune.replay.entries import span_of
from interpretune.replay.observed import Held, Observed, noting, noting_at_points
from interpretune.replay.prefill import Prefill
from interpretune.replay.prefix import Rows
from interpretune.replay.rows import Changes, LatentRows
from interpretune.system.model_lock import model_lock


@torch.no_grad()
def ablate(
    prefill: Prefill,
    rows: LatentRows,
    columns: Tensor | None = None,
    row_budget: int | None = None,
    *,
    naive: bool = False,
    observed: Observed | None = None,
) -> Tensor:
    """Logits at the rows' tokens with latents set, all latent models spliced in.

    Rows that set latents to their present values change nothing. They get the clean logits and are not computed.

    Args:
        prefill: The clean run.
        rows: What to set where; the result is in this order.
        columns: Ids of the logits wanted, ``[c]``; None: all.
        row_budget: Most rows that run at a time; None: chosen from the free memory.
        naive: Use the plain loop, a whole forward for each row, even if tokens can be replayed.
        observed: What the rows note on their way; rows that are not computed note nothing.

    Returns:
        ``[n, c]``.

    Raises:
        AnalysisError: A row names an example or a latent that does not exist, or the budget is below one row.
        NotFiniteError: Logits with latents set are NaN or infinite.
    """
    with model_lock(prefill.backend.model):
        return _ablate(prefill, rows, columns, row_budget, naive, observed)


def _ablate(
    prefill: Prefill,
    rows: LatentRows,
    columns: Tensor | None,
    row_budget: int | None,
    naive: bool,
    observed: Observed | None,
) -> Tensor:
    check_rows_and_budget(prefill, rows, row_budget)
    prefill = prefill if observed is None else observed.begins_for(prefill)
    clean = prefill.logits if columns is None else prefill.logits[:, columns]
    result = clean.new_empty(len(rows), clean.shape[-1])
    replays = prefill.kept is not None and not naive
    size, groups = row_budget, groups_of(prefill, rows, whole=not replays)
    same = torch.ones(len(rows), dtype=torch.bool, device=clean.device)
    for which in groups.values():
        same[which] = False
    result[same] = clean[rows.points[same]]
    replayed = [names for names in groups if replays and (observed is None or observed.runs_in(prefill, names))]
    budget = size or (replay_budget(prefill, columns) if replays else naive_budget(prefill))
    if prefill.kept is not None and (observed is None or not observed.held):
        alone = prefill.kept.alone
        joins = [name for name in sorted(alone, key=lambda name: alone[name].start) if alone[name].joins]
        joining = {name: groups.pop((name,)) for name in joins if (name,) in replayed}
        for parts in _chunks(joining, budget):
            chunk = torch.cat(list(parts.values()))
            noted = None if observed is None else observed.of_rows(chunk)
            found = _replay_joined(prefill, {name: rows.select(ids) for name, ids in parts.items()}, columns, noted)
            result = _filled(result, chunk, found)
    for names, which in groups.items():
        which = which[rows.points[which].argsort(stable=True)]
        run: Callable[..., Tensor] = _replay if names in replayed else run_naively
        for chunk in which.split(budget if names in replayed else size or naive_budget(prefill)):
            noted = None if observed is None else observed.of_rows(chunk)
            result = _filled(result, chunk, run(prefill, rows.select(chunk), names, columns, observed=noted))
    check_finite(prefill, rows, result)
    return result


def _filled(result: Tensor, rows: Tensor, found: Tensor) -> Tensor:
    """The result with some rows filled in; what was found itself if that is all of it, since vocabularies are large."""
    if len(rows) == len(result) and torch.equal(rows, torch.arange(len(result), device=rows.device)):
        return found
    result[rows] = found
    return result


def check_finite(prefill: Prefill, rows: LatentRows, logits: Tensor) -> None:
    """Refuse logits ``[n, ..., c]`` that are finite in the clean run and not in a row with latents set."""
    if not logits.numel() or not bool((lacking := lacks_logits(logits)).any()):
        return
    bad = lacking.reshape(len(logits), -1).any(-1).nonzero().flatten()
    told = [
        f"latents {item.latents[chosen].tolist()[:5]} of {name} to {item.values[chosen].tolist()[:5]}"
        for name, item in rows.changes.items()
        if bool((chosen := torch.isin(item.rows, bad)).any())
    ]
    raise NotFiniteError(
        "Logits with latents set",
        sorted(set(prefill.points.examples[rows.points[bad]].tolist())),
        f"The clean logits are finite; they are not with {' and '.join(told)}. Look at the values that were set and at "
        "the decoder; in float16, an overflow is likely: use bfloat16 or float32.",
    )


def _chunks(groups: Mapping[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    """At most this many rows at a time, group by group."""
    for start in range(0, sum(map(len, groups.values())), size):
        before, parts = 0, {}
        for name, ids in groups.items():
            if len(part := ids[max(0, start - before) : max(0, start + size - before)]):
                parts[name] = part
            before += len(ids)
        yield parts


def groups_of(prefill: Prefill, rows: LatentRows, *, whole: bool) -> dict[tuple[str, ...], Tensor]:
    """Rows that change something, grouped by the latent models whose latents they set.

    In a row that changes something, every latent that is set counts: one that is 0 in the clean run may become active
    through what the row changes below.

    Args:
        prefill: The clean run.
        rows: What is set where.
        whole: Whether whole forwards run. Then rows that set coordinates of hook points are one group; else those that
            set some at several hook points and begin at the same one.
    """
    groups = dict(_groups(prefill, rows))
    plain: dict[str, list[tuple[str, ...]]] = {}
    for names in groups:
        of_coordinates = all(isinstance(prefill.latent_models[name], IdentityDictionary) for name in names)
        if of_coordinates and (whole or len(names) > 1):
            plain.setdefault("" if whole else prefill.lowest(names), []).append(names)
    for alike in plain.values():
        together = tuple(dict.fromkeys(name for names in alike for name in names))
        groups[together] = torch.cat([groups.pop(names) for names in alike])
    return groups


def _groups(prefill: Prefill, rows: LatentRows) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    names = list(rows.changes)
    touched = torch.zeros(len(rows), len(names), dtype=torch.bool, device=rows.points.device)
    changing = torch.zeros(len(rows), dtype=torch.bool, device=rows.points.device)
    for column, (name, item) in enumerate(rows.changes.items()):
        points = rows.points[item.rows]
        spliced = ~prefill.untouched[name][points]
        touched[item.rows[spliced], column] = True
        changing[item.rows[(prefill.latents[name][points, item.latents] != item.values) & spliced]] = True
    remaining = changing.nonzero().flatten()
    while len(remaining):
        pattern = touched[remaining[0]]
        alike = (touched[remaining] == pattern).all(dim=-1)
        yield tuple(name for name, is_set in zip(names, pattern.tolist(), strict=True) if is_set), remaining[alike]
        remaining = remaining[~alike]


def _replay(
    prefill: Prefill,
    rows: LatentRows,
    names: tuple[str, ...],
    columns: Tensor | None,
    observed: Observed | None = None,
) -> Tensor:
    lowest = prefill.lowest(names)
    kept, ran = prefill.require_kept(), Rows.of(rows.points)
    with noting_at_points(prefill, observed, names, ran.points) as noted:
        if len(names) == 1 and lowest in kept.projected:
            return prefill.run_joined(names, None, ran, begun(prefill, lowest, rows), {}, columns, noted)
        output, edits = None, {name: rows.changes[name].edit() for name in names if name in rows.changes}
        if kept.entries[lowest].puts_output:
            del edits[lowest]
            output = changed_output(prefill, lowest, rows.points, rows.changes[lowest])
        return prefill.run_rows(lowest, ran, output, edits, columns, noted)


def _replay_joined(
    prefill: Prefill, parts: Mapping[str, LatentRows], columns: Tensor | None, observed: Observed | None = None
) -> Tensor:
    """Rows of several latent models, by the block where they begin, lowest first: there they join those from below."""
    kept = prefill.require_kept()
    alone = kept.alone
    begin = [list(names) for _, names in groupby(parts, lambda name: (alone[name].start, prefill.running(name)))]
    ends: list[str | None] = [*(names[0] for names in begin[1:]), None]
    points, found, below = prefill.points.positions.new_empty(0), list[Tensor](), list[str]()
    for names, end in zip(begin, ends, strict=True):
        outputs = {}
        for name in names:
            rows, entry = parts[name], alone[name]
            output = begun(prefill, name, rows)
            if not entry.hands_in:
                outputs[name] = torch.arange(len(points), len(points) + len(rows), device=points.device), output
            found.append(output if entry.hands_in else kept.hidden[entry.start][rows.points])
            points = torch.cat([points, rows.points])
        order = points.argsort(stable=True)
        back = order.argsort()
        within = {name: (back[ids], output) for name, (ids, output) in outputs.items()}
        below += names
        runs, sorted_rows = prefill.between(names[0], end), Rows.of(points[order])
        with noting_at_points(prefill, observed, below, sorted_rows.points, order, runs) as noted:
            ran = prefill.run_joined(names, end, sorted_rows, torch.cat(found)[order], within, columns, noted)
        found = [ran[back]]
    return found[0]


def begun(prefill: Prefill, name: str, rows: LatentRows) -> Tensor:
    """What rows begin with that change one latent model alone: what it writes, or the stream after its block."""
    projected = prefill.require_kept().projected.get(name)
    if projected is None:
        return changed_output(prefill, name, rows.points, rows.changes[name])
    return projected.changed(prefill.latents[name], rows.points, rows.changes[name])


def changed_output(prefill: Prefill, name: str, points: Tensor, changes: Changes) -> Tensor:
    """What a latent model with a linear decoder writes in each row, ``[n, d_out]``, without decoding anything.

    ``output + sum over changed latents of (new - old activation) * decoder row``.
    """
    model: Any = prefill.latent_models[name]
    output = prefill.require_kept().outputs[name].flatten(1)[points]
    if isinstance(model, IdentityDictionary):
        return output.index_put((changes.rows, changes.latents), changes.values.to(output.dtype))
    assert isinstance(model, HasDecoderRows)
    before = prefill.latents[name][points[changes.rows], changes.latents]
    written = model.decoder_rows(changes.latents)
    assert written is not None
    step = (changes.values.to(before.dtype) - before).unsqueeze(-1) * written
    return output.index_add(0, changes.rows, step.to(output.dtype))


def run_naively(
    prefill: Prefill,
    rows: LatentRows,
    names: tuple[str, ...],
    columns: Tensor | None,
    wanted: Tensor | None = None,
    observed: Observed | None = None,
) -> Tensor:
    """The plain loop's step: every row is a whole forward of its example.

    Args:
        prefill: The clean run.
        rows: What to set where.
        names: Activation names of what they set.
        columns: Ids of the logits wanted, ``[c]``; None: all.
        wanted: Positions where they are wanted, ``[n, w]``; None: at the rows' tokens.
        observed: What the rows note on their way.

    Returns:
        ``[n, c]``, or ``[n, w, c]``.
    """
    points = prefill.points.select(rows.points)
    examples = _with_longest(prefill, points.examples)
    backend, inputs = prefill.backend, prefill.inputs.select(examples)
    at = _in_own_row(points)
    if wanted is not None:
        at = Points(at.examples.repeat_interleave(wanted.shape[1]), wanted.flatten())
    latent_edits = {name: rows.changes[name].edit(points.positions) for name in names if name in rows.changes}
    slots = torch.arange(inputs.tokens.shape[1], device=examples.device).expand(len(points), -1)

    def held(names: list[str]) -> dict[str, Held]:
        clean = observed.clean(prefill, names) if observed else {}
        return {name: item.of(lambda whole: whole[examples]) for name, item in clean.items()}

    def run(edits: Mapping[str, Edit]) -> Tensor:
        return backend.forward(inputs, edits, at)

    with noting(observed, names, (points.examples, slots, points.positions), held) as noted, rows_named(examples):
        splices = [
            noted.splice(name, model, backend.untouched_by(model, inputs), latent_edits.get(name))
            for name, model in prefill.latent_models.items()
        ]
        logits = run(backend.chain(splices, run=run))
    logits = logits if columns is None else logits[:, columns]
    return logits if wanted is None else logits.unflatten(0, wanted.shape)


@torch.no_grad()
def ablate_everywhere(
    prefill: Prefill, rows: LatentRows, columns: Tensor | None = None, row_budget: int | None = None
) -> Tensor:
    """Logits at the rows' tokens with latents set at every position of their examples.

    Every row runs all its tokens, starting at the lowest latent model that the rows change.

    Args:
        prefill: The clean run.
        rows: What is set where.
        columns: Ids of the logits wanted, ``[c]``; None: all.
        row_budget: Most rows that run at a time; None: chosen from the free memory.

    Returns:
        ``[n, c]``.

    Raises:
        AnalysisError: As ``ablate``.
    """
    with model_lock(prefill.backend.model):
        return _ablate_everywhere(prefill, rows, columns, row_budget)


def _ablate_everywhere(prefill: Prefill, rows: LatentRows, columns: Tensor | None, row_budget: int | None) -> Tensor:
    check_rows_and_budget(prefill, rows, row_budget)
    backend, models = prefill.backend, list(prefill.latent_models.values())
    names = tuple(rows.changes)
    if not names:
        return ablate(prefill, rows, columns)
    engine = None if prefill.kept is None else prefill.kept.engine
    start, hidden = 0, prefill.logits
    if engine is not None:
        spans = {name: span_of(engine, model) for name, model in prefill.latent_models.items()}
        start = int(min(spans[name].first for name in names))
        while below := [int(span.first) for span in spans.values() if span.first < start <= span.last]:
            start = min(below)
        models = [model for name, model in prefill.latent_models.items() if spans[name].first < start]
        edits, _ = backend.splice_edits(prefill.inputs, models)
        hidden = _residual_before(prefill, edits, start)
        models = [model for name, model in prefill.latent_models.items() if spans[name].first >= start]
    results = []
    for chunk in torch.arange(len(rows), device=rows.points.device).split(row_budget or naive_budget(prefill)):
        part = rows.select(chunk)
        points = prefill.points.select(part.points)
        examples = points.examples if engine is not None else _with_longest(prefill, points.examples)
        inputs = prefill.inputs.select(examples)
        here = _in_own_row(points)

        def run(
            edits: Mapping[str, Edit], inputs: Any = inputs, points: Points = points, here: Points = here
        ) -> Tensor:
            if engine is None:
                return backend.forward(inputs, edits, here)
            return engine.run_from(inputs, start, hidden[points.examples], edits, here)

        latent_edits = {name: item.edit() for name, item in part.changes.items()}
        with rows_named(examples):
            logits = run(backend.splice_edits(inputs, models, latent_edits, run=run)[0])
        results.append(logits if columns is None else logits[:, columns])
    width = prefill.backend.vocab_size if columns is None else len(columns)
    return torch.cat(results) if results else prefill.logits.new_empty(0, width)


def _residual_before(prefill: Prefill, edits: Mapping[str, Edit], block: int) -> Tensor:
    """The residual stream before a block with latent models spliced in below, ``[batch, pos, d_model]``."""
    seen: list[Tensor] = []
    with contextlib.suppress(AllCaptured):
        prefill.backend.forward(prefill.inputs, {**edits, in_layer(block, RESID_PRE): noted_last(seen)})
    return seen[0]


def _with_longest(prefill: Prefill, examples: Tensor) -> Tensor:
    """The examples that run together, followed by the longest of the batch if a model's numbers depend on it."""
    if prefill.backend.follows_longest_row(prefill.inputs) is None:
        return examples
    return torch.cat([examples, prefill.inputs.attention_mask.sum(-1).argmax().reshape(1)])


def _in_own_row(points: Points) -> Points:
    """The same positions, with one row for each point."""
    return Points(torch.arange(len(points), device=points.positions.device), points.positions)


def check_rows_and_budget(prefill: Prefill, rows: LatentRows, row_budget: int | None) -> None:
    """Refuse rows that name what does not exist, and a budget without room for one.

    Raises:
        AnalysisError: With the row or the budget.
    """
    if row_budget is not None and row_budget < 1:
        raise AnalysisError(f"row_budget is {row_budget}; an ablation needs room for one row at least.")
    rows.check(len(prefill.points), {name: item.d_sae for name, item in prefill.latent_models.items()})
