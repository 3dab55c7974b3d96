"""How faithful latent models are on some batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import asdict, frozen
from torch import Tensor
from torch.nn import functional

from interpretune.activations.edits import Edit
from interpretune.activations.finite import check_rows, rows_not_finite
from interpretune.activations.inputs import ModelInputs
from interpretune.errors import LatentModelError, NotFiniteError
from interpretune.latents.latent_model import (
    LatentModel,
    activation_name,
    read_points,
    reconstruct,
    side_by_side,
    summed,
    written_points,
)
from interpretune.system.model_lock import model_lock

if TYPE_CHECKING:
    from interpretune.backends.backend import AnalysisBackend


@frozen(kw_only=True)
class LatentQuality:
    """Quality of one latent model on some batches.

    Attributes:
        name: Its activation name.
        explained_variance: 1 - residual variance / variance of the output it replaces, over spliced tokens.
        l0: Mean number of active latents, over spliced tokens.
        answer_l0: The same at the answer position.
        never_active: Share of latents that are never active in these batches.
        loss_clean: Mean next-token loss of the model, in nats, over real tokens.
        loss_spliced: The same with this latent model spliced in.
        loss_zeroed: The same with zeros in place of the spliced tokens.
        loss_recovered: (zeroed - spliced) / (zeroed - clean).
        tokens: Number of spliced tokens.
    """

    name: str
    explained_variance: float
    l0: float
    answer_l0: float
    never_active: float
    loss_clean: float
    loss_spliced: float
    loss_zeroed: float
    loss_recovered: float
    tokens: int

    def as_row(self) -> dict[str, Any]:
        """For tables."""
        return asdict(self)


@torch.no_grad()
def measure_latent_quality(
    backend: AnalysisBackend, latent_models: Sequence[LatentModel], batches: Iterable[Mapping[str, Any]]
) -> list[LatentQuality]:
    """Measure each latent model on its own.

    Args:
        backend: Runs the model: ``backend_of(model, tokenizer)``, or ``module.backend`` of a session.
        latent_models: The latent models.
        batches: Batches on any device: tokens and their attention mask, as tokenizers give them.

    Raises:
        LatentModelError: What latent models write is summed: one alone reconstructs nothing.
    """
    if parts := summed(latent_models):
        raise LatentModelError(
            f"What {', '.join(repr(item.name) for item in parts)} write is summed, as parts of a cross-layer "
            "transcoder: one alone reconstructs nothing that could be measured. Measure the others "
            "without them."
        )
    tallies = [_Tally(item) for item in latent_models]
    for batch in batches:
        on_device = {name: value.to(backend.model_device) for name, value in batch.items() if hasattr(value, "to")}
        inputs = ModelInputs.from_batch(on_device)
        with model_lock(backend.model):
            clean = _loss(backend, inputs, {})
            for tally in tallies:
                tally.add(backend, inputs, clean)
    return [tally.result() for tally in tallies]


class FitTally:
    """Running sums of how well a latent model fits the tokens that it is shown."""

    def __init__(self) -> None:
        self.sums: Tensor | float = 0.0
        self.total: Tensor | float = 0.0
        self.ever: Tensor | bool = False

    def add(self, targets: Tensor, latents: Tensor, reconstruction: Tensor) -> None:
        """Take tokens into account: ``[n, d_out]``, ``[n, d_sae]`` and ``[n, d_out]``."""
        targets, active = targets.double(), latents != 0
        residual = (targets - reconstruction.double()).square().sum()
        counted = torch.full_like(residual, len(targets))
        self.sums = self.sums + torch.stack([counted, residual, targets.square().sum(), active.sum().double()])
        self.total = self.total + targets.sum(0)
        self.ever = self.ever | active.any(0)

    def share(self) -> None:
        """Add up what all processes have counted, where there are several."""
        self.sums, self.total = torch.as_tensor(self.sums), torch.as_tensor(self.total)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.sums)
            torch.distributed.all_reduce(self.total)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self._sum(0))

    @property
    def explained_variance(self) -> float:
        """1 - residual variance / variance of the targets; NaN where they do not vary."""
        variance = self._sum(2) - torch.as_tensor(self.total).square().sum().item() / max(self._sum(0), 1)
        return 1 - self._sum(1) / variance if variance else float("nan")

    @property
    def l0(self) -> float:
        """Mean number of latents that are not 0."""
        return self._sum(3) / max(self._sum(0), 1)

    @property
    def never_active(self) -> float:
        """Share of latents that were 0 for every token."""
        return 1 - torch.as_tensor(self.ever).double().mean().item()

    def _sum(self, index: int) -> float:
        return self.sums[index].item() if isinstance(self.sums, Tensor) else 0.0


class _Tally:
    """Running sums for one latent model."""

    def __init__(self, latent_model: LatentModel) -> None:
        self.latent_model = latent_model
        self.fit = FitTally()
        self.answers = 0
        self.answer_active = 0.0
        self.losses = torch.zeros(3, dtype=torch.float64)
        self.targets = 0

    def add(self, backend: AnalysisBackend, inputs: ModelInputs, clean: Tensor) -> None:
        """Add one batch to the sums."""
        item = self.latent_model
        untouched = backend.untouched_positions(inputs) if item.skips_special_tokens else ~inputs.attention_mask.bool()
        reads, writes = read_points(item), written_points(item)
        cache = backend.capture(inputs, [*reads, *writes])
        read = side_by_side(cache, reads)
        latents = item.encode(read)
        spliced = ~untouched
        target, reconstruction = side_by_side(cache, writes)[spliced], reconstruct(item, latents, read)[spliced]
        residual = target.double() - reconstruction.double()
        if not bool(residual.isfinite().all()):
            rows = spliced.nonzero()[rows_not_finite(residual), 0].unique().tolist()
            what = f"The activations, or the reconstruction, of {activation_name(item)}"
            raise NotFiniteError(what, rows, "Look at the latent model's weights, and at what it reads.")
        self.fit.add(target, latents[spliced], reconstruction)
        self.answers += len(inputs)
        rows = torch.arange(len(inputs), device=latents.device)
        self.answer_active += (latents[rows, inputs.answer_positions] != 0).sum().item()

        def zero(activations: Tensor) -> Tensor:
            shape = (*untouched.shape, *([1] * (activations.ndim - 2)))
            return activations.masked_fill(~untouched.reshape(shape), 0)

        edits, _ = backend.splice_edits(inputs, [item], {}, ())
        sums = [
            clean.double().sum(),
            _loss(backend, inputs, edits).double().sum(),
            _loss(backend, inputs, dict.fromkeys(writes, zero)).double().sum(),
        ]
        self.losses += torch.stack(sums).cpu()
        self.targets += len(clean)

    def result(self) -> LatentQuality:
        """Ratios of the sums."""
        clean, spliced, zeroed = (self.losses / max(self.targets, 1)).tolist()
        return LatentQuality(
            name=activation_name(self.latent_model),
            explained_variance=self.fit.explained_variance,
            l0=self.fit.l0,
            answer_l0=self.answer_active / max(self.answers, 1),
            never_active=self.fit.never_active,
            loss_clean=clean,
            loss_spliced=spliced,
            loss_zeroed=zeroed,
            loss_recovered=(zeroed - spliced) / (zeroed - clean) if zeroed != clean else float("nan"),
            tokens=self.fit.tokens,
        )


def _loss(backend: AnalysisBackend, inputs: ModelInputs, edits: Mapping[str, Edit]) -> Tensor:
    """Next-token loss of every real token that follows a real token, in nats, ``[n]``."""
    logits = backend.forward(inputs, edits)
    mask = inputs.attention_mask.bool()
    targets = mask[:, 1:] & mask[:, :-1]
    chosen = logits[:, :-1][targets]
    exact = chosen if chosen.dtype == torch.float64 else chosen.float()
    losses = functional.cross_entropy(exact, inputs.tokens[:, 1:][targets], reduction="none")
    check_rows(losses, "Next-token losses", "Does the model rule out tokens of the text?", targets.nonzero()[:, 0])
    return losses
