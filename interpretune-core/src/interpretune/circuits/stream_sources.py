"""What is written into the residual stream of a prompt, in parts: by latents, and by what they leave unexplained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.hook_names import FINAL_NORM, MLP_ACT, MLP_OUT, canonical, split_layer
from interpretune.activations.inputs import ModelInputs
from interpretune.backends.backend import AnalysisBackend
from interpretune.circuits.linear_run import EMBEDDED, LinearRun, Targets
from interpretune.errors import AnalysisError
from interpretune.latents.latent_model import (
    HasDecoderRows,
    LatentModel,
    layer_of,
    read_points,
    reconstruct,
    written_points,
)


@frozen(eq=False)
class Written:
    """What nodes write at one hook point.

    Attributes:
        nodes: Which of the sources each is, ``[k]``, ascending by position.
        positions: The token of each, ``[k]``.
        vectors: What each writes there, ``[k, d]``.
    """

    nodes: Tensor
    positions: Tensor
    vectors: Tensor


class Sources:
    """The nodes of a prompt that write into the residual stream: active latents, then errors, then tokens.

    Attributes:
        models: The dictionaries, by layer.
        layers: The layer of each dictionary.
        model: Index of the dictionary of each latent, ``[m]``.
        positions: Its token, ``[m]``.
        ids: Its id in the dictionary, ``[m]``.
        activations: ``[m]``.
        written: What all sources write, by hook point.
        unexplained: Layers into whose MLPs no dictionary writes.
    """

    def __init__(
        self, backend: AnalysisBackend, inputs: ModelInputs, models: Sequence[LatentModel], run: LinearRun
    ) -> None:
        """Encode the clean run, in which the dictionaries change nothing."""
        self.models, self._clean = models, run.clean
        self.layers = [layer_of_transcoder(model) for model in models]
        n_positions = inputs.tokens.shape[1]
        found, parts = [], {name: [] for name in run.writes}  # type: ignore[var-annotated]
        wide = torch.promote_types(run.logits.dtype, torch.float32)
        explained = {name: torch.zeros_like(run.clean[name], dtype=wide) for name in run.writes}
        first = 0
        with torch.no_grad():
            for i, model in enumerate(models):
                latents = model.encode(run.clean[canonical(model.hook_point)].flatten(2))
                untouched = backend.untouched_by(model, inputs)
                if untouched is not None:
                    latents = latents.masked_fill(untouched.unsqueeze(-1), 0)
                nothing = torch.zeros_like(run.clean[canonical(model.hook_point)].flatten(2))
                made = reconstruct(model, latents, nothing)  # what a skip connection makes is no source's
                if untouched is not None:
                    made = made.masked_fill(untouched.unsqueeze(-1), 0)
                positions, ids = latents[0].nonzero().unbind(-1)
                activations = latents[0, positions, ids]
                nodes = torch.arange(first, first + len(ids), device=ids.device)
                first += len(ids)
                found.append((torch.full_like(ids, i), positions, ids, activations))
                names = [canonical(name) for name in written_points(model)]
                widths = [run.clean[name].shape[-1] for name in names]
                rows = _rows_of(model, ids).to(wide) * activations.unsqueeze(-1)
                for name, vectors, part in zip(names, rows.split(widths, -1), made.split(widths, -1), strict=True):
                    parts[name].append((nodes, positions, vectors))
                    explained[name] += part
            self.model, self.positions, self.ids, self.activations = (
                torch.cat(item) for item in zip(*found, strict=True)
            )
            here = torch.arange(n_positions, device=inputs.tokens.device)
            for i, name in enumerate([*run.writes[1:], EMBEDDED]):
                nodes = first + i * n_positions + here
                parts[name].append((nodes, here, (run.written[name] - explained[name])[0]))
        self.written = {name: _by_position(items) for name, items in parts.items()}
        reached = {name for model in models for name in map(canonical, written_points(model))}
        self.unexplained = [i for i, name in enumerate(run.writes[1:]) if name not in reached]
        self.n_positions = n_positions

    @property
    def n_latents(self) -> int:
        """Number of active latents."""
        return len(self.ids)

    @property
    def n(self) -> int:
        """Number of sources."""
        return self.n_latents + self.n_positions * len(self.written)

    def edges(self, slopes: Mapping[str, Tensor]) -> Tensor:
        """What each source contributes to functions with these slopes, ``[m, pos, d]`` by hook point.

        Returns:
            ``[m, n]``, float64, on the processor.
        """
        m = len(next(iter(slopes.values())))
        total = torch.zeros(m, self.n, dtype=torch.float64, device=self.ids.device)
        for name, item in self.written.items():
            for position in range(self.n_positions):
                here = slice(*torch.searchsorted(item.positions, torch.tensor([position, position + 1]).to(self.ids)))
                total[:, item.nodes[here]] += (
                    slopes[name][:, position].to(item.vectors) @ item.vectors[here].T
                ).double()
        return total.cpu()

    def latent_targets(self, which: Tensor, batch_size: int) -> Targets:
        """Active latents as functions: what their dictionary reads, times the slope of the latent there.

        For latents whose activation is that of a linear encoder, or 0, this is the activation without its bias.

        Args:
            which: Sources that are latents, ``[m]``.
            batch_size: How many tokens a dictionary encodes at a time.
        """
        vectors = {}
        for i in self.model[which].unique().tolist():
            model = self.models[i]
            mine = which[self.model[which] == i]
            name = canonical(model.hook_point)
            slopes: list[Tensor] = []
            for part in mine.split(batch_size):
                with torch.enable_grad():
                    read = self._clean[name].flatten(2)[0, self.positions[part]].requires_grad_()
                    latents = model.encode(read.unsqueeze(1))[:, 0]
                    chosen = latents.gather(-1, self.ids[part].unsqueeze(-1)).sum()
                    slopes += torch.autograd.grad(chosen, [read], materialize_grads=True)
            vectors[name] = torch.cat(slopes)
        names = [canonical(model.hook_point) for model in self.models]
        return Targets(names, self.model[which], self.positions[which], vectors)

    def logit_targets(self, vectors: Tensor) -> Targets:
        """Logits as functions of what the last norm makes at the last token, ``[k, d]``."""
        at = torch.zeros(len(vectors), dtype=torch.long, device=vectors.device)
        return Targets([FINAL_NORM], at, at + self.n_positions - 1, {FINAL_NORM: vectors})


def layer_of_transcoder(model: LatentModel) -> int:
    """The layer that a transcoder reads.

    Raises:
        AnalysisError: It is no transcoder: it reads at several hook points, or what an MLP has made, or does not write
            outputs of MLPs alone.
    """
    reads, writes = read_points(model), [split_layer(name) for name in written_points(model)]
    layer, part = layer_of(reads[0]), (split_layer(reads[0]) or (0, ""))[1]
    if layer is None or any(at is None or at[1] != MLP_OUT for at in writes) or part in (MLP_ACT, MLP_OUT):
        raise AnalysisError(
            f"The dictionary {model.name!r} reads {', '.join(reads)} and writes "
            f"{', '.join(written_points(model))}. An attribution graph replaces MLPs by dictionaries that read what an "
            "MLP reads and write mlp_out: transcoders, and parts of cross-layer transcoders. What latents of other "
            "dictionaries do, effects() measures."
        )
    if len(reads) > 1:
        raise AnalysisError(
            f"The dictionary {model.name!r} reads at {len(reads)} hook points: its latents have no layer in an "
            "attribution graph. Give transcoders, or the parts of a cross-layer transcoder."
        )
    return layer


def _rows_of(model: LatentModel, ids: Tensor) -> Tensor:
    rows = model.decoder_rows(ids) if isinstance(model, HasDecoderRows) else None
    if rows is None:
        raise AnalysisError(
            f"The dictionary {model.name!r} does not say that its decoder is linear (decoder_rows), so that what a "
            "latent alone writes is unknown. Attribution graphs are of latents with linear decoders."
        )
    return rows


def _by_position(items: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Written:
    nodes, positions, vectors = (torch.cat(item) for item in zip(*items, strict=True))
    order = positions.argsort(stable=True)
    return Written(nodes[order], positions[order].contiguous(), vectors[order])
