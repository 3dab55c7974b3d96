"""Exact total effects of nodes of an attribution graph on others: one row of a whole forward for each source.

What the source writes is taken away where it writes; everything after that is computed anew, attention and norms
included. Dictionaries are read and change nothing: what they do not explain of an MLP is what it is in the changed run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from interpretune.activations.edits import Edit, in_turn
from interpretune.activations.hook_names import FINAL_NORM, canonical
from interpretune.activations.hooked_model import AllCaptured
from interpretune.activations.inputs import ModelInputs
from interpretune.backends.backend import AnalysisBackend
from interpretune.circuits.linear_run import noting
from interpretune.circuits.stream_sources import Sources, Written


@torch.no_grad()
def total_effects(
    backend: AnalysisBackend,
    inputs: ModelInputs,
    sources: Sources,
    which: Tensor,
    latents: Tensor,
    logits: Tensor,
    batch_size: int,
) -> Tensor:
    """Effect of each source on each target: the target in the clean run minus that without the source.

    Args:
        backend: Runs the model.
        inputs: The prompt.
        sources: All that is written.
        which: The sources that are taken away, ``[m]``, ascending.
        latents: The latents that are read, ``[t]``, as sources.
        logits: Of the centred logits that are read, what the last norm's output is multiplied by, ``[k, d]``.
        batch_size: How many sources are taken away in one forward.

    Returns:
        ``[t + k, m]``, float64, on the processor.
    """
    parts = []
    for some in which.split(batch_size):
        rows = torch.zeros(len(some) + 1, dtype=torch.long, device=inputs.tokens.device)  # the first is the clean run
        seen: dict[str, Tensor] = {}
        chains: dict[str, list[Edit]] = {}
        for name, item in sources.written.items():
            if (edit := _without(item, some)) is not None:
                chains.setdefault(name, []).append(edit)
        for name in dict.fromkeys([*(canonical(model.hook_point) for model in sources.models), FINAL_NORM]):
            chains.setdefault(name, []).append(noting(name, seen, last=name == FINAL_NORM))
        with contextlib.suppress(AllCaptured):
            backend.forward(inputs.select(rows), {name: in_turn(chain) for name, chain in chains.items()})
        values = torch.cat(
            [_latents(sources, latents, seen), seen[FINAL_NORM][:, -1].double() @ logits.double().T], dim=-1
        )
        parts.append((values[:1] - values[1:]).T.cpu())
    return torch.cat(parts, dim=-1)


def _without(item: Written, some: Tensor) -> Callable[[Tensor], Tensor] | None:
    """An edit that takes away what some of the sources write, each in the row after its place among them."""
    mine = torch.isin(item.nodes, some).nonzero().flatten()
    if not len(mine):
        return None
    rows = torch.searchsorted(some, item.nodes[mine]) + 1

    def take(activations: Tensor) -> Tensor:
        changed = activations.clone()
        changed[rows, item.positions[mine]] -= item.vectors[mine].to(activations).reshape(-1, *activations.shape[2:])
        return changed

    return take


def _latents(sources: Sources, latents: Tensor, seen: Mapping[str, Tensor]) -> Tensor:
    """Activations of latents in all rows, ``[rows, t]``, float64."""
    n_rows = len(seen[FINAL_NORM])
    found = torch.zeros(n_rows, len(latents), dtype=torch.float64, device=latents.device)
    for i, model in enumerate(sources.models):
        mine = (sources.model[latents] == i).nonzero().flatten()
        if len(mine):
            positions, at = sources.positions[latents[mine]].unique(return_inverse=True)
            encoded = model.encode(seen[canonical(model.hook_point)].flatten(2)[:, positions])
            found[:, mine] = encoded[:, at, sources.ids[latents[mine]]].double()
    return found
