"""What coordinates of a hook point, or latents of a dictionary, contribute straight to an objective."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.hook_names import canonical
from interpretune.backends.direct_paths import DirectRun
from interpretune.errors import AnalysisError
from interpretune.latents.latent_model import HasDecoderRows, LatentModel, read_points, written_points


@frozen(eq=False)
class Contributions:
    """Of ``k`` units at ``n`` points, all ``[n, k]`` and in float64.

    Attributes:
        effects: The last norm has the scale of the forward.
        alone: It reads what the unit writes, and nothing else.
        activations: Of the unit; of several coordinates their norm.
    """

    effects: Tensor
    alone: Tensor
    activations: Tensor


@torch.no_grad()
def of_coordinates(run: DirectRun, hook_point: str, members: Tensor) -> Contributions:
    """Contributions of sets of coordinates ``[k, m]`` of a hook point that the run has seen.

    Raises:
        AnalysisError: What is there is not written into the residual stream.
    """
    read, slopes, members = run.seen[hook_point], run.slopes(hook_point), members.to(run.seen[hook_point].device)
    values = read.double()[:, members]
    effects = (read.double() * slopes)[:, members].sum(-1)
    activations = values.squeeze(-1) if members.shape[-1] == 1 else values.norm(dim=-1)
    if members.shape[-1] == 1:
        sizes = run.paths.sizes_of_coordinates(hook_point, read)[members.squeeze(-1)] * activations.abs()
    else:
        vectors = torch.zeros(len(read), len(members), read.shape[-1]).to(read)
        vectors.scatter_(-1, members.expand(len(read), *members.shape), read[:, members])
        sizes = run.paths.sizes(hook_point, vectors.flatten(0, 1)).unflatten(0, vectors.shape[:2])
    return Contributions(effects, run.alone(hook_point, effects, sizes), activations)


@torch.no_grad()
def of_latents(run: DirectRun, model: LatentModel, among: Tensor | None = None) -> tuple[Tensor, Contributions]:
    """Contributions of the latents of a dictionary that are active at some point, in the model as it is.

    Args:
        run: It has seen where the dictionary reads and writes.
        model: The dictionary.
        among: Ids of latents, ascending; None: all.

    Returns:
        Ids of the active ones, and their contributions.

    Raises:
        AnalysisError: The decoder is not declared linear, or what it writes does not go into the residual stream, or
            into several hook points of which one is the whole stream.
    """
    read = torch.cat([run.seen[canonical(name)] for name in read_points(model)], dim=-1)
    latents = model.encode(read.unsqueeze(1)).squeeze(1)
    ids = (latents != 0).any(0).nonzero().flatten()
    if among is not None:
        ids = ids[torch.isin(ids, among.to(ids.device))]
    rows = model.decoder_rows(ids) if isinstance(model, HasDecoderRows) else None
    if rows is None:
        raise AnalysisError(
            f"The dictionary {model.name!r} does not say that its decoder is linear (decoder_rows), so that what a "
            "latent alone writes is unknown. Direct attribution is of latents with linear decoders."
        )
    points = [canonical(name) for name in written_points(model)]
    if len(points) > 1 and (other := next((name for name in points if not run.adds(name)), None)):
        raise AnalysisError(
            f"The dictionary {model.name!r} writes at {len(points)} hook points, one of them {other}, where what it "
            "writes is not added to the residual stream. Direct attribution is of dictionaries that write at one, or "
            "at outputs of sublayers."
        )
    activations = latents[:, ids].double()
    slopes = [run.slopes(name) for name in points]
    effects = activations * (torch.cat(slopes, dim=-1) @ rows.to(activations).T)
    if len(points) == 1:
        sizes = run.paths.sizes(points[0], rows.to(read))
        return ids, Contributions(effects, run.alone(points[0], effects, sizes * activations.abs()), activations)
    parts = rows.to(activations).split([item.shape[-1] for item in slopes], dim=-1)
    written = sum((run.factor(name) * part for name, part in zip(points, parts, strict=True)), 0 * parts[0])
    sizes = run.paths.sizes(run.paths.last, written.to(read)) * activations.abs()
    return ids, Contributions(effects, run.alone(run.paths.last, effects, sizes), activations)
