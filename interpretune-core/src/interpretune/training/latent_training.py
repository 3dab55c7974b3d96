"""A module whose latent models are what is trained, while the model that they read stays as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from attrs import frozen
from safetensors.torch import save_model
from torch import Tensor, nn

from interpretune.activations.inputs import ModelInputs
from interpretune.config.checked import CheckedConfig
from interpretune.errors import LatentModelError, TrainingError
from interpretune.latents.latent_model import (
    HasDecoderNorms,
    HasHookPoints,
    HasSave,
    HasTrainingLoss,
    HasTrainingRule,
    LatentModel,
    alias_of,
    own_name,
    read_points,
    reconstruct,
    side_by_side,
    written_points,
)
from interpretune.latents.quality import FitTally
from interpretune.session.module import ITModule
from interpretune.session.optimization import check_latent_models
from interpretune.system.cache_folder import build_once

if TYPE_CHECKING:
    from interpretune.config.module import ITConfig

WEIGHTS = "weights.safetensors"
ABOUT = "latent_model.json"


@dataclass(kw_only=True)
class LatentTrainingConfig(CheckedConfig, checks_types=True):
    """Fields for a module's configuration: ``AutoCompConfig(module_cfg_mixin=LatentTrainingConfig)``.

    Attributes:
        l1_coefficient: See ``LatentTrainingModule``.
    """

    l1_coefficient: float = 1.0


class LatentTrainingModule(ITModule):
    """Trains its latent models on activations of the frozen model; set ``ITConfig(train_latent_models=True)``.

    A latent model sees the tokens that it replaces when it is spliced: all but padding or, with
    ``skips_special_tokens``, all but padding, special tokens and the first token of a row. Its loss is its own
    (``training_loss``) where it has one, and otherwise

        ``mean over tokens(|target - reconstruction|^2 + l1_coefficient * sum of latents)``,

    where each latent counts with the norm of what it writes if the latent model tells (``decoder_norms``); without, a
    penalty on the latents alone can be evaded by small latents and a large decoder.

    Attributes:
        l1_coefficient: Weight of the sparsity penalty, in units of the activations; a configuration that has a field of
            this name, as with ``LatentTrainingConfig``, goes before.
    """

    l1_coefficient: float = 1.0
    passing_state: ClassVar[frozenset[str]] = frozenset({"_tallies"})

    def __init__(self, it_cfg: ITConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(it_cfg, *args, **kwargs)
        self._tallies: dict[tuple[str, str], FitTally] = {}

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Sum of the losses of all latent models that have trainable parameters.

        Logs ``train_loss`` and each term of each loss, for example ``train_mse/blocks.1.hook_resid_post``.

        Raises:
            TrainingError: No latent model is trained, or a loss leaves out one of its trainable parameters.
        """
        trained = self._trained()
        losses = []
        for sample in self._samples(batch, trained):
            terms = self.latent_loss(sample)
            loss = torch.stack(list(terms.values())).sum()
            if batch_idx == 0:
                _check_reached(sample.latent_model, loss)
            place = own_name(sample.latent_model)
            self.log_dict({f"train_{name}/{place}": value for name, value in terms.items()})
            losses.append(loss)
        total = torch.stack(losses).sum()
        self.log("train_loss", total, prog_bar=True)
        return total

    def latent_loss(self, sample: LatentSample) -> Mapping[str, Tensor]:
        """Terms of the loss of one latent model by name; their sum is minimised."""
        item = sample.latent_model
        if isinstance(item, HasTrainingLoss):
            terms = item.training_loss(sample.activations, sample.targets, self.global_step)
            if terms is not None:
                return terms
        latents, reconstruction = sample.run()
        if isinstance(item, HasDecoderNorms):
            latents = latents * item.decoder_norms()
        coefficient = getattr(self.it_cfg, "l1_coefficient", self.l1_coefficient)
        dtype = torch.promote_types(sample.targets.dtype, torch.float32)  # half precision is too coarse for a loss
        return {
            "mse": (reconstruction.to(dtype) - sample.targets.to(dtype)).square().sum(-1).mean(),
            "l1": coefficient * latents.to(dtype).abs().sum(-1).mean(),
        }

    # ------------------------------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Take a batch into account; see ``on_validation_epoch_end``."""
        self._measure(batch)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Take a batch into account; see ``on_test_epoch_end``."""
        self._measure(batch)

    def on_validation_epoch_start(self) -> None:
        """Begin anew."""
        self._tallies = {}

    def on_test_epoch_start(self) -> None:
        """Begin anew."""
        self._tallies = {}

    def on_validation_epoch_end(self) -> None:
        """Log ``val_explained_variance/<hook point>`` and ``val_l0/<hook point>`` of each latent model.

        They are those of ``measure_latent_quality``: over all tokens of the epoch, not means over its batches. Of a
        latent model that is trained by a rule of its own (``encode_in_training``) they are by that rule, and
        ``val_spliced_explained_variance/...`` and ``val_spliced_l0/...`` are of what analyses splice.
        """
        self._log_quality("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test_explained_variance/<hook point>`` and so on of each latent model, as in validation."""
        self._log_quality("test")

    def _measure(self, batch: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for sample in self._samples(batch, self.latent_models):
                place, spliced = own_name(sample.latent_model), sample.run()
                in_training = sample.run_in_training()
                self._tally("", place).add(sample.targets, *(spliced if in_training is None else in_training))
                if in_training is not None:
                    self._tally("spliced_", place).add(sample.targets, *spliced)

    def _tally(self, form: str, place: str) -> FitTally:
        return self._tallies.setdefault((form, place), FitTally())

    def _log_quality(self, split: str) -> None:
        for (form, place), tally in self._tallies.items():
            tally.share()
            fit = {"explained_variance": tally.explained_variance, "l0": tally.l0}
            self.log_dict({f"{split}_{form}{name}/{place}": value for name, value in fit.items()})

    # ----------------------------------------------------------------------------------------------------------- saving

    def save_latent_models(self, folder: str | Path) -> list[Path]:
        """Save every latent model to a folder of its own, which is whole or absent.

        Args:
            folder: Gets a folder for each latent model, named by its hook point. A latent model that has no format of
                its own (``save_to``) is written as ``weights.safetensors``, which ``safetensors.torch.load_model`` puts
                into an object of its class, and ``latent_model.json``, which says what it is.

        Returns:
            The folders, in the order of ``latent_models``.

        Raises:
            LatentModelError: A folder exists already, or a latent model cannot be saved.
            CacheError: The place cannot be written.
        """
        base = Path(folder).expanduser()
        places = [base / re.sub(r"[^\w.-]", "_", own_name(item)) for item in self.latent_models]
        for item, place in zip(self.latent_models, places, strict=True):
            if place.exists() or places.count(place) > 1:
                raise LatentModelError(
                    f"{item.name!r} is not saved: {place} {'exists' if place.exists() else 'is wanted twice'}. Nothing "
                    "was written. Choose another folder."
                )
            if not isinstance(item, (HasSave, nn.Module)):
                raise LatentModelError(
                    f"{item.name!r} is a {type(item).__name__}, neither a torch.nn.Module nor an object with save_to("
                    "folder). Nothing was written. Give it such a method."
                )
        return [build_once(place, _saver(item)) for item, place in zip(self.latent_models, places, strict=True)]

    # ------------------------------------------------------------------------------------------------------ activations

    def _trained(self) -> list[LatentModel]:
        if self.it_cfg.train_latent_models:
            check_latent_models(self.latent_models)
        trained = [item for item in self.latent_models if any(True for _ in _trainable(item))]
        if not trained:
            raise TrainingError(
                f"{type(self).__name__} trains latent models, and none of this session's "
                f"{len(self.latent_models)} has a trainable parameter. Set ITConfig(train_latent_models=True)."
            )
        return trained

    def _samples(self, batch: Mapping[str, Any], latent_models: Sequence[LatentModel]) -> Iterator[LatentSample]:
        """What each latent model is to see of a batch, by one forward that ends at the highest hook point."""
        inputs = ModelInputs.from_batch(batch)
        names = {name for item in latent_models for name in (*read_points(item), *written_points(item))}
        seen = self.backend.capture(inputs, sorted(names))
        real = inputs.attention_mask.bool()
        replaced = ~self.backend.untouched_positions(inputs)
        for item in latent_models:
            kept = replaced if item.skips_special_tokens else real
            activations, targets = (side_by_side(seen, points(item))[kept] for points in (read_points, written_points))
            yield LatentSample(item, activations, targets)


@frozen(eq=False)
class LatentSample:
    """What a latent model sees of a batch.

    Attributes:
        latent_model: The latent model.
        activations: Where it reads, ``[n, d_in]``, without gradient.
        targets: Where it writes, ``[n, d_out]``.
    """

    latent_model: LatentModel
    activations: Tensor
    targets: Tensor

    def run(self) -> tuple[Tensor, Tensor]:
        """Latents ``[n, d_sae]`` and reconstruction ``[n, d_out]``."""
        latents = self.latent_model.encode(self.activations.unsqueeze(0))
        return latents.squeeze(0), self._made_of(latents)

    def run_in_training(self) -> tuple[Tensor, Tensor] | None:
        """The same by the rule of training; None where the latent model has none of its own."""
        item = self.latent_model
        latents = item.encode_in_training(self.activations.unsqueeze(0)) if isinstance(item, HasTrainingRule) else None
        return None if latents is None else (latents.squeeze(0), self._made_of(latents))

    def _made_of(self, latents: Tensor) -> Tensor:
        return reconstruct(self.latent_model, latents, self.activations.unsqueeze(0)).squeeze(0)


def _trainable(latent_model: LatentModel) -> Iterator[tuple[str, nn.Parameter]]:
    if isinstance(latent_model, nn.Module):
        for name, parameter in latent_model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter


def _check_reached(latent_model: LatentModel, loss: Tensor) -> None:
    """Refuse a loss from which a trainable parameter gets no gradient: it would be saved as it was, without a word."""
    reached, waiting, known = set(), [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        reached.add(id(getattr(node, "variable", None)))  # where a gradient is stored, the leaf
        waiting.extend(before for before, _ in node.next_functions)
    missed = [name for name, parameter in _trainable(latent_model) if id(parameter) not in reached]
    if missed:
        raise TrainingError(
            f"The loss of the latent model {latent_model.name!r} does not depend on {', '.join(missed)}, marked "
            "trainable: it would never change. Freeze it before the training, with "
            f"latent_model.get_parameter({missed[0]!r}).requires_grad_(False), or give the latent model a "
            "training_loss that reaches it."
        )


def _saver(latent_model: LatentModel) -> Any:
    def save(folder: Path) -> None:
        if isinstance(latent_model, HasSave):
            latent_model.save_to(folder)
            return
        assert isinstance(latent_model, nn.Module)
        save_model(latent_model, str(folder / WEIGHTS))
        about = ["name", "hook_point", "output_hook_point", "d_in", "d_sae", "skips_special_tokens"]
        about += ["alias"] if alias_of(latent_model) else []
        about += ["hook_points", "output_hook_points"] if isinstance(latent_model, HasHookPoints) else []
        described = {"class": type(latent_model).__qualname__, **{name: getattr(latent_model, name) for name in about}}
        (folder / ABOUT).write_text(json.dumps(described, indent=1), encoding="utf-8")

    return save
