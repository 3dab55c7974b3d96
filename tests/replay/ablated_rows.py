"""Rows of ablations, the check that replays give what whole forwards give, and a reference that knows no library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interpretune.analysis import LatentModel, LatentRows, ModelInputs, Points, Prefill, ablate, activation_name
from interpretune.replay import Changes
from tests.tiny_latents import activations_of, hooked, splice_hooks

Row = tuple[int, Mapping[str, Mapping[int, float]]]
"""A point, and what is set there: latents and values by activation name."""

ATOL = 1e-10
EAGER_ATOL = 2e-6
"""Of models whose attention takes its softmax in float32 whatever their dtype: on some CPUs its last digit follows the
number of rows."""


def rows_of(rows: Sequence[Row]) -> LatentRows:
    """The library's rows."""
    names = dict.fromkeys(name for _, sets in rows for name in sets)
    changes = {}
    for name in names:
        flat = [(i, *pair) for i, (_, sets) in enumerate(rows) for pair in sets.get(name, {}).items()]
        owners, latents, values = zip(*flat, strict=True) if flat else ((), (), ())
        changes[name] = Changes(
            torch.tensor(owners, dtype=torch.long),
            torch.tensor(latents, dtype=torch.long),
            torch.tensor(values, dtype=torch.float64),
        )
    return LatentRows(torch.tensor([point for point, _ in rows], dtype=torch.long), changes)


def active_rows(prefill: Prefill, name: str, value: float = 0.0, *, every: int = 1) -> LatentRows:
    """Active latents of one latent model alone, all or one of so many and the last, and one that is not active."""
    pairs = (prefill.latents[name] > 0).nonzero()
    pairs = torch.cat([pairs[:-1:every], pairs[-1:]])
    assert prefill.latents[name].isfinite().all()
    assert len(pairs)
    inactive = (prefill.latents[name] == 0).nonzero()[:1]
    return LatentRows.single(name, torch.cat([pairs, inactive]), value)


def error_of(prefill: Prefill, rows: LatentRows, **options: Any) -> float:
    """Largest difference of a replayed logit from whole forwards; replays run twice and must have effects."""
    wanted = _whole_forwards(prefill, rows)
    return torch.tensor([_error(prefill, rows, wanted, **options) for _ in range(2)]).max().item()  # NaN where one is


def worst_error(prefill: Prefill) -> float:
    """Largest error over all latent models, each ablated by itself and all in one call, which lets rows join."""
    parts = [active_rows(prefill, activation_name(m), every=3) for m in prefill.latent_models.values()]
    wanted = [_whole_forwards(prefill, rows) for rows in parts]
    joined, of_all = LatentRows.joined(parts), torch.cat(wanted)
    errors = [_error(prefill, *pair) for pair in zip(parts, wanted, strict=True)]
    errors += [_error(prefill, joined, of_all, row_budget=budget) for budget in (len(joined) // 3 + 1, None)]
    errors += [_error(prefill, *pair) for pair in zip(parts, wanted, strict=True)]  # as if none had run before
    return torch.tensor(errors).max().item()  # NaN where one is


def _whole_forwards(prefill: Prefill, rows: LatentRows) -> Tensor:
    assert prefill.kept is not None
    wanted = ablate(prefill, rows, naive=True)
    assert (wanted - prefill.logits[rows.points]).abs().amax() > 1e-3
    return wanted


def _error(prefill: Prefill, rows: LatentRows, wanted: Tensor, **options: Any) -> float:
    return (ablate(prefill, rows, **options) - wanted).abs().max().item()


def reference(
    model: Any,
    inputs: ModelInputs,
    latent_models: Sequence[LatentModel],
    points: Points,
    rows: Sequence[Row],
    special: Sequence[int] = (),
    *,
    everywhere: bool = False,
) -> Tensor:
    """A whole forward for each row, by torch hooks on a Hugging Face GPT-2 or Llama.

    Rows of one example run as one batch, which needs no padding; each has a line of its own in it.
    """
    results: dict[int, Tensor] = {}
    for example in sorted(set(points.examples.tolist())):
        real = inputs.attention_mask[example].bool()
        tokens = inputs.tokens[example][real]
        lines = {
            i: (int(points.positions[point]), sets)
            for i, (point, sets) in enumerate(rows)
            if int(points.examples[point]) == example
        }
        at = [int(real[:position].sum()) for position, _ in lines.values()]

        def edit(item: Any, latents: Tensor, lines: Any = lines, at: Any = at) -> Tensor:
            changed = latents.clone()
            for line, (_, sets) in enumerate(lines.values()):
                for latent, value in sets.get(activations_of(item), {}).items():
                    changed[line, slice(None) if everywhere else at[line], latent] = value
            return changed

        if lines:
            with torch.no_grad(), hooked(model, splice_hooks(latent_models, tokens, special, edit)):
                logits = model(input_ids=tokens.expand(len(lines), -1)).logits[range(len(lines)), at]
            results |= dict(zip(lines, logits, strict=True))
    return torch.stack([results[i] for i in range(len(rows))])
