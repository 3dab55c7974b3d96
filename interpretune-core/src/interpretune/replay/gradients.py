"""Gradients with respect to latents at single tokens, through replays of these tokens alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.edits import Edit, watch
from interpretune.activations.finite import check_rows
from interpretune.activations.hooked_model import AllCaptured, noted_last
from interpretune.errors import AnalysisError
from interpretune.latents.latent_model import HasDecoderRows, reconstruct
from interpretune.replay.ablation import changed_output
from interpretune.replay.budgets import replay_budget
from interpretune.replay.observed import Noted, held_at_points
from interpretune.replay.prefill import Prefill
from interpretune.replay.prefix import Rows
from interpretune.replay.rows import LatentRows
from interpretune.system.model_lock import model_lock
from interpretune.system.torch_state import frozen_parameters, gradients_of

MOST_STEPS = 4096
"""Changes of which the first-order effects are computed at a time."""
WHY = "Look at the objective: a logarithm, a root or a quotient in it may have no gradient there."

Objective = Callable[[Tensor, Tensor], Tensor]
"""A scalar of logits ``[n, c]`` and their points ``[n]``; a sum over rows."""


def attribute(
    prefill: Prefill, objective: Objective, names: Sequence[str], columns: Tensor | None = None
) -> dict[str, Tensor]:
    """Gradients of an objective with respect to latents at the points, separately for each point.

    The graph begins at the lowest named latent model and has one token per row; gradients include what flows through
    latent models above. Exact for the points; use ``AnalysisBackend.gradients`` for gradients at all positions.

    Args:
        prefill: The clean run.
        objective: Scalar of the points' logits.
        names: Activation names.
        columns: Ids of the logits that the objective receives, ``[c]``; None: all.

    Returns:
        ``[n, d_sae]`` by activation name.

    Raises:
        ReplayRefusedError: The model cannot be replayed.
    """
    lowest = prefill.lowest(names)
    rows = Rows.of(torch.arange(len(prefill.points), device=prefill.logits.device))
    leaves: dict[str, Tensor] = {}
    edits = {name: watch(name, leaves) for name in names}
    output = None
    with torch.enable_grad(), _frozen(prefill):
        if prefill.require_kept().entries[lowest].puts_output:
            del edits[lowest]
            leaves[lowest] = prefill.latents[lowest].detach().requires_grad_()
            output = decoded(prefill, lowest, rows.points, leaves[lowest])
        logits = prefill.run_rows(lowest, rows, output, edits, columns)
        found = gradients_of(objective(logits, rows.points), [leaves[name] for name in names])
    gradients = {name: grad.reshape(len(rows), -1) for name, grad in zip(names, found, strict=True)}
    for name, grad in gradients.items():
        check_rows(grad, f"Gradients at {name}", WHY, prefill.points.examples)
    return gradients


def integrated_gradients(
    prefill: Prefill,
    objective: Objective,
    names: Sequence[str],
    columns: Tensor | None = None,
    steps: int = 10,
    baseline: float | Mapping[str, Tensor] = 0.0,
    row_budget: int | None = None,
) -> dict[str, Tensor]:
    """Integrated gradients over the latents of one latent model at a time (Sundararajan et al. 2017, equation 1).

    ``(a - b) * mean over k of df/da at b + (k - 1/2) / steps * (a - b)``: the midpoint rule on the straight line from
    the baseline ``b`` to the activations ``a`` of all latents of a point. Sums over latents approach ``f(a) - f(b)``.

    Args:
        prefill: The clean run.
        objective: Scalar of the points' logits; a sum over rows.
        names: Activation names.
        columns: Ids of the logits that the objective gets, ``[c]``; None: all.
        steps: Points on the line; they run as rows of one batch.
        baseline: The value from which every active latent starts; or where all latents start, ``[n, d_sae]`` by
            activation name.
        row_budget: Most rows that run at a time; None: chosen from the free memory.

    Returns:
        Attributions ``[n, d_sae]`` by activation name, in units of the objective.

    Raises:
        AnalysisError: Less than one step.
        ReplayRefusedError: The model cannot be replayed.
    """
    means = mean_gradients(prefill, objective, names, columns, steps, baseline, row_budget)
    result = {name: _line(prefill, name, baseline) * mean for name, mean in means.items()}
    for name, values in result.items():
        check_rows(values, f"Integrated gradients at {name}", WHY, prefill.points.examples)
    return result


def mean_gradients(
    prefill: Prefill,
    objective: Objective,
    names: Sequence[str],
    columns: Tensor | None = None,
    steps: int = 10,
    baseline: float | Mapping[str, Tensor] = 0.0,
    row_budget: int | None = None,
) -> dict[str, Tensor]:
    """The mean over the steps of ``integrated_gradients``, which takes and raises the same; ``[n, d_sae]`` by name."""
    if steps < 1:
        raise AnalysisError(f"Integrated gradients over {steps} steps; at least one is needed.")
    budget = row_budget or replay_budget(prefill, columns)
    n, device = len(prefill.points), prefill.logits.device
    result = {}
    for name in names:
        latents, line = prefill.latents[name].detach(), _line(prefill, name, baseline)
        total = torch.zeros_like(latents)
        points = torch.arange(n, device=device).repeat_interleave(steps)
        shares = midpoints(steps, latents).repeat(n)
        for chunk in torch.arange(n * steps, device=device).split(budget):
            where, share = points[chunk], shares[chunk].unsqueeze(-1)
            leaf = (latents[where] - (1 - share) * line[where]).requires_grad_()
            total.index_add_(0, where, _gradient_at(prefill, name, objective, columns, where, leaf))
        result[name] = total / steps
        check_rows(result[name], f"Integrated gradients at {name}", WHY, prefill.points.examples)
    return result


def midpoints(steps: int, like: Tensor) -> Tensor:
    """The middles of equal parts of the line from 0 to 1, ``[steps]``."""
    return torch.arange(1, 2 * steps, 2, device=like.device, dtype=like.dtype) / (2 * steps)


def _line(prefill: Prefill, name: str, baseline: float | Mapping[str, Tensor]) -> Tensor:
    """What latents move from the baseline to their activations, ``[n, d_sae]``."""
    latents = prefill.latents[name].detach()
    return latents - baseline[name] if isinstance(baseline, Mapping) else (latents != 0) * (latents - baseline)


def _gradient_at(
    prefill: Prefill, name: str, objective: Objective, columns: Tensor | None, points: Tensor, leaf: Tensor
) -> Tensor:
    """Gradient at the given latents, ``[n, d_sae]``."""
    rows = Rows.of(points)
    with torch.enable_grad(), _frozen(prefill):
        if prefill.require_kept().entries[name].puts_output:
            logits = prefill.run_rows(name, rows, decoded(prefill, name, points, leaf), {}, columns)
        else:
            logits = prefill.run_rows(name, rows, None, {name: lambda _: leaf.unsqueeze(1)}, columns)
        return gradients_of(objective(logits, points), [leaf])[0]


def decoded(prefill: Prefill, name: str, points: Tensor, latents: Tensor) -> Tensor:
    """What a latent model with a linear decoder writes for given latents ``[n, d_sae]``, ``[n, d_out]``, with gradient.

    The change from the clean run is decoded and added to what was written there, so that error terms are kept.
    """
    model = prefill.latent_models[name]
    clean = prefill.require_kept().outputs[name].flatten(1)[points]
    nothing = latents.new_zeros(len(latents), 1, model.d_in)  # what a skip connection makes of inputs is no change
    before = reconstruct(model, prefill.latents[name][points].unsqueeze(1), nothing).squeeze(1)
    before = before.detach().clone()  # a buffer may be used again
    change = reconstruct(model, latents.unsqueeze(1), nothing).squeeze(1) - before
    return clean + change.to(clean.dtype).masked_fill(prefill.untouched[name][points].unsqueeze(-1), 0)


# --------------------------------------------------------------------------------------------------------------- edges


@frozen(eq=False)
class GradientEdges:
    """Gradient edges from the active latents of one latent model to those of another, at one point.

    Attributes:
        upstream: Ids, ``[u]``.
        downstream: Ids, ``[d]``.
        values: Activation of the upstream latent x gradient of the downstream latent with respect to it, ``[u, d]``,
            in units of the downstream activation.
    """

    upstream: Tensor
    downstream: Tensor
    values: Tensor


def gradient_edges(
    prefill: Prefill, upstream: str, downstream: str, row_budget: int | None = None
) -> list[GradientEdges]:
    """Gradient edges between all active latents of two latent models, at each point.

    They are exact as gradients and first-order approximations of effects.

    One row per active downstream latent runs from the upstream latent model to the downstream one, and a single
    backward gives the gradients of all of them.

    Args:
        prefill: The clean run.
        upstream: Activation name of the lower latent model.
        downstream: Activation name of the higher one.
        row_budget: Most rows that run at a time; None: chosen from the free memory.

    Returns:
        The edges of each point.

    Raises:
        AnalysisError: The latent models are not in that order.
        ReplayRefusedError: The model cannot be replayed.
    """
    entries = prefill.require_kept().entries
    order = list(entries)
    if not {upstream, downstream} <= set(order) or order.index(upstream) >= order.index(downstream):
        raise AnalysisError(
            f"No edges from {upstream} to {downstream}: the spliced latent models are, from the lowest up, "
            f"{', '.join(order)}."
        )
    points, latents = (prefill.latents[downstream] != 0).nonzero().unbind(-1)
    gradients = [
        _downstream_gradients(prefill, upstream, downstream, points[chunk], latents[chunk])
        for chunk in torch.arange(len(points), device=points.device).split(row_budget or replay_budget(prefill, None))
        if len(chunk)
    ]
    gradient = torch.cat(gradients) if gradients else prefill.latents[upstream].new_empty(0, 0)
    model = prefill.latent_models[upstream]
    result = []
    for point in range(len(prefill.points)):
        mine, active = points == point, prefill.latents[upstream][point]
        ids = (active != 0).nonzero().flatten()
        if entries[upstream].puts_output and isinstance(model, HasDecoderRows):
            written = model.decoder_rows(ids)
            assert written is not None
            slopes = written.to(gradient.dtype) @ gradient[mine].T if mine.any() else active.new_zeros(len(ids), 0)
        else:
            slopes = gradient[mine][:, ids].T if mine.any() else active.new_zeros(len(ids), 0)
        values = active[ids].unsqueeze(-1) * slopes.to(active.dtype)
        if prefill.untouched[upstream][point]:
            values = torch.zeros_like(values)
        result.append(GradientEdges(ids, latents[mine], values.detach()))
    return result


def gradient_effects(
    prefill: Prefill,
    rows: LatentRows,
    upstream: str,
    downstream: str,
    which: Tensor,
    latents: Tensor,
    held: Sequence[str] = (),
    row_budget: int | None = None,
) -> Tensor:
    """What gradients say that rows do to latents of a higher latent model at their points.

    ``sum over the latents that a row sets of (activation - value) x gradient``; with value 0 and one latent in a row,
    it is that of ``gradient_edges``.

    Args:
        prefill: The clean run.
        rows: Set latents of ``upstream`` alone.
        upstream: Activation name of the lower latent model.
        downstream: Activation name of the higher one.
        which: Ids of rows, ``[m]``.
        latents: A latent of ``downstream`` for each of them, ``[m]``.
        held: Activation names of latent models that write what they write in the clean run.
        row_budget: Most rows that run at a time; None: chosen from the free memory.

    Returns:
        ``[m]``, in units of the downstream activation.

    Raises:
        ReplayRefusedError: The model cannot be replayed.
    """
    width = prefill.latent_models[downstream].d_sae
    targets, of_target = (rows.points[which] * width + latents).unique(return_inverse=True)
    order, counts = of_target.argsort(stable=True), torch.bincount(of_target, minlength=len(targets))
    linear = prefill.require_kept().entries[upstream].puts_output
    result = prefill.latents[downstream].new_zeros(len(which))
    for chunk in torch.arange(len(targets), device=targets.device).split(row_budget or replay_budget(prefill, None)):
        points, ids = targets[chunk] // width, targets[chunk] % width
        gradient = _downstream_gradients(prefill, upstream, downstream, points, ids, held)
        first = int(counts[: chunk[0]].sum())
        for mine in order[first : first + int(counts[chunk].sum())].split(MOST_STEPS):
            slopes, own = gradient[of_target[mine] - chunk[0]], rows.repeated(which[mine], rows.points[which[mine]])
            changes = own.changes[upstream]
            if linear:
                clean = prefill.require_kept().outputs[upstream].flatten(1)[own.points]
                step = clean - changed_output(prefill, upstream, own.points, changes)
                result[mine] = (step * slopes).sum(-1).to(result.dtype)
            else:
                step = prefill.latents[upstream][own.points[changes.rows], changes.latents] - changes.values
                part = (step * slopes[changes.rows, changes.latents]).to(result.dtype)
                result[mine] = result.new_zeros(len(mine)).index_add(0, changes.rows, part)
    return result


def _downstream_gradients(
    prefill: Prefill, upstream: str, downstream: str, points: Tensor, latents: Tensor, held: Sequence[str] = ()
) -> Tensor:
    """Gradient of one downstream latent per row.

    With respect to the upstream output if that is linear in its latents, ``[n, d_out]``, otherwise with respect to the
    upstream latents, ``[n, d_sae]``.
    """
    kept, rows = prefill.require_kept(), Rows.of(points)
    seen: list[Tensor] = []
    leaves: dict[str, Tensor] = {}
    output: Tensor | None = None
    edits: dict[str, Edit] = {}
    with torch.enable_grad(), _frozen(prefill):
        if kept.entries[upstream].puts_output:
            output = leaves[upstream] = kept.outputs[upstream].flatten(1)[points].detach().requires_grad_()
        else:
            edits[upstream] = watch(upstream, leaves)
        noted = Noted({downstream: noted_last(seen)}, held=held_at_points(prefill, held, points))
        with contextlib.suppress(AllCaptured):
            prefill.run_rows(upstream, rows, output, edits, noted=noted)
        chosen = seen[0].squeeze(1)[torch.arange(len(rows), device=points.device), latents]
        if upstream not in leaves:  # downstream reads before upstream does
            like = kept.outputs[upstream] if kept.entries[upstream].puts_output else prefill.latents[upstream]
            return torch.zeros_like(like.flatten(1)[points])
        return gradients_of(chosen.sum(), [leaves[upstream]])[0].flatten(1)


@contextlib.contextmanager
def _frozen(prefill: Prefill) -> Iterator[None]:
    model = prefill.backend.model
    with model_lock(model), frozen_parameters(model, *prefill.latent_models.values()):
        yield
