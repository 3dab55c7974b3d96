"""Trains SAEs on the activations of a session, with SAELens's own trainer, and keeps them in a cache."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sae_lens
import torch
from attrs import frozen
from sae_lens import SAE, BatchTopKTrainingSAE, SAETrainer
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from torch import Tensor
from tqdm.auto import tqdm

from interpretune import (
    ConfigurationError,
    ITDataModule,
    ITModule,
    LatentModelError,
    NotReusedWarning,
    build_once,
    cache_root,
)
from interpretune.analysis import AnalysisBackend, ContentHash, ModelInputs, content_hash, identify_session
from interpretune.system import random_state_put_back
from interpretune_saelens.config import SAELensTrainConfig
from interpretune_saelens.latent_model import SKIPS_SPECIAL_TOKENS, SAELatentModel
from interpretune_saelens.loading import load_from_disk

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

REPORT = "training-report.json"
EVALUATED = 8192
"""Activations that a trained SAE encodes at once when it is measured."""


def train_latent_models(
    module: ITModule, datamodule: ITDataModule, cfgs: Sequence[SAELensTrainConfig]
) -> list[SAELatentModel]:
    """Load the SAEs of the configurations from the cache; train those that are not there, in one pass over the data.

    Returns:
        One latent model for each configuration, frozen, in order.

    Raises:
        HookPointError: The model lacks a hook point.
        LatentModelError: There are no activations to train on.
    """
    module.backend.check_hook_points([cfg.hook_name for cfg in cfgs])
    identities: dict[tuple[int, int], ContentHash] = {}
    collected: dict[int, Activations] = {}  # by seed; filled by the first SAE that is not in the cache
    latent_models = []
    for cfg in cfgs:
        read = cfg.buffer_samples, cfg.seed
        if read not in identities:
            identities[read] = activation_identity(module, datamodule, *read)
        recipe = {
            name: value
            for name, value in asdict(cfg).items()
            if name not in ("cache_dir", "skips_special_tokens", "alias")
        }
        recipe |= {"sae_options": cfg.sae_options, "trainer_options": cfg.trainer_options}  # as defaults give them
        recipe_hash = content_hash(recipe, f"The recipe of the SAE at {cfg.hook_name}")
        known = identities[read]
        key = hashlib.sha256(f"{known.sha256} {recipe_hash.sha256}".encode()).hexdigest()[:16]
        if why := known.why_unknown or recipe_hash.why_unknown:
            key += f"-{secrets.token_hex(8)}"  # found by nobody again
            warnings.warn(
                f"The SAE at {cfg.hook_name} is trained anew, since it cannot be known what it depends on: {why}",
                NotReusedWarning,
                stacklevel=2,
            )
        folder = cache_root(cfg.cache_dir or module.it_cfg.cache_dir) / "saes" / f"{cfg.hook_name}-{cfg.d_sae}-{key}"

        def train(target: Path, cfg: SAELensTrainConfig = cfg) -> None:
            if cfg.seed not in collected:
                alike = [item for item in cfgs if item.seed == cfg.seed]
                most = max(item.buffer_samples for item in alike)
                names = list(dict.fromkeys(item.hook_name for item in alike))
                collected[cfg.seed] = collect_activations(module, datamodule, names, most, cfg.seed)
            _train_one(cfg, collected[cfg.seed].first(cfg.buffer_samples), module, target)

        build_once(folder, train)
        latent_model = SAELatentModel(
            load_from_disk(folder, module.device), None, cfg.skips_special_tokens, alias=cfg.alias
        )
        latent_model.training_report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        latent_models.append(latent_model.eval().requires_grad_(False))
    return latent_models


@frozen(eq=False)
class Activations:
    """Activations to train on.

    Attributes:
        values: ``[n, d_in]`` float32 on the CPU, by hook point.
        is_answer: Which of them stand at an answer position, ``[n]``.
    """

    values: Mapping[str, Tensor]
    is_answer: Tensor

    def first(self, most: int) -> Activations:
        """At most so many of them: an SAE depends on its own recipe, not on what was collected for others."""
        return Activations({name: values[:most] for name, values in self.values.items()}, self.is_answer[:most])

    def repeated(self, name: str, answer_repeats: int) -> Tensor:
        """The activations at one hook point, those of answer positions ``answer_repeats`` times."""
        values = self.values[name]
        return torch.cat([values, *[values[self.is_answer]] * (answer_repeats - 1)])


def training_batches(
    module: ITModule, loader: Iterable[Any], most: int
) -> Iterator[tuple[Mapping[str, Any], ModelInputs, Tensor]]:
    """Batches to train on, until they have enough tokens.

    Args:
        module: The session's module.
        loader: The data module's ``train_dataloader``.
        most: Tokens that are enough, without first, special and padding tokens.

    Yields:
        The batch as the loader gives it, the model's inputs, and which tokens count, ``[batch, pos]``.
    """
    count = 0
    for batch in loader:
        inputs = ModelInputs.from_batch(module.batch_to_device(batch))
        wanted = ~module.backend.untouched_positions(inputs)
        yield batch, inputs, wanted
        count += int(wanted.sum())
        if count >= most:
            return


def activation_identity(module: ITModule, datamodule: ITDataModule, most: int, seed: int) -> ContentHash:
    """What activations, and the SAEs that are trained on them, depend on: model, code, and the batches to train on.

    Args:
        module: The session's module.
        datamodule: What it has beside the batches to train on changes nothing.
        most: See ``training_batches``.
        seed: Seed of the order.
    """
    session = identify_session(module)
    digest, unknown = hashlib.sha256(session.sha256.encode()), list(session.unknown)
    with random_state_put_back():
        torch.manual_seed(seed)
        for batch, _, _ in training_batches(module, datamodule.train_dataloader(), most):
            of_batch = content_hash(dict(batch), "A batch to train on")
            digest.update(of_batch.sha256.encode())
            unknown += of_batch.unknown
    library = content_hash(sae_lens.SAETrainer, "SAELens")  # its version or, of an editable install, its code
    digest.update(library.sha256.encode())
    return ContentHash(digest.hexdigest(), (*unknown, *library.unknown))


def collect_activations(
    module: ITModule, datamodule: ITDataModule, names: Sequence[str], most: int, seed: int
) -> Activations:
    """Activations at hook points over the training batches, without first, special and padding tokens.

    Args:
        module: The session's module.
        datamodule: Its ``train_dataloader`` is read once, in an order that the seed fixes.
        names: Hook points.
        most: Stop when so many activations are there.
        seed: Seed of the order.

    Raises:
        LatentModelError: No token was left.
    """
    backend: AnalysisBackend = module.backend
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    answers: list[Tensor] = []
    loader = datamodule.train_dataloader()
    with random_state_put_back(), tqdm(total=len(loader), desc="Collecting activations", unit="batch") as bar:
        torch.manual_seed(seed)
        for _, inputs, wanted in training_batches(module, loader, most):
            is_answer = torch.zeros_like(wanted)
            is_answer[torch.arange(len(inputs), device=wanted.device), inputs.answer_positions] = True
            for name, values in backend.capture(inputs, names).items():
                kept[name].append(values.flatten(2)[wanted].float().cpu())
            answers.append(is_answer[wanted].cpu())
            bar.update()
    if not any(map(len, answers)):
        raise LatentModelError(
            f"The training split gives no token to train SAEs on at {', '.join(names)}: all are first tokens, special "
            "tokens or padding. Give the data module a training split with text."
        )
    return Activations({name: torch.cat(values)[:most] for name, values in kept.items()}, torch.cat(answers)[:most])


def shuffled_batches(activations: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches ``[batch, d_in]``; every pass over the activations has an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, len(activations))
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            yield activations[order[start : start + size]]


def _train_one(cfg: SAELensTrainConfig, collected: Activations, module: ITModule, folder: Path) -> None:
    start = time.perf_counter()
    activations = collected.repeated(cfg.hook_name, cfg.answer_repeats)
    batch_size = min(cfg.batch_size, len(activations))
    # a stranger's trainer draws from the global generator; give it one of its own
    with random_state_put_back(), torch.enable_grad():
        torch.manual_seed(cfg.seed)
        sae, scale = _fresh_sae(cfg, activations, module)
        options: dict[str, Any] = {
            "total_training_samples": cfg.training_steps * batch_size,
            "train_batch_size_samples": batch_size,
            "lr": cfg.lr,
            "lr_end": cfg.lr / 10,
            "device": str(module.device),
            "logger": LoggingConfig(log_to_wandb=False),
            **cfg.trainer_options,
        }
        trainer: SAETrainer[Any, Any] = SAETrainer(
            SAETrainerConfig(**options), sae, shuffled_batches(activations, batch_size, cfg.seed)
        )
        trainer.activation_scaler.scaling_factor = scale
        trained = trainer.fit()
    trained.cfg.metadata.hook_name = cfg.hook_name
    trained.cfg.metadata[SKIPS_SPECIAL_TOKENS] = True
    trained.save_inference_model(folder)
    plain = collected.values[cfg.hook_name]
    spliced = load_from_disk(folder, module.device)
    by_rule = {"spliced_explained_variance", "spliced_l0"} if isinstance(trained, BatchTopKTrainingSAE) else set()
    as_spliced = {f"spliced_{name}": value for name, value in _fit_quality(spliced, plain).items()}
    report = {
        "hook": cfg.hook_name,
        "latents": cfg.d_sae,
        "activations": len(plain),
        "steps": cfg.training_steps,
        "seconds": round(time.perf_counter() - start, 1),
        **_fit_quality(trained, plain),
        **{name: value for name, value in as_spliced.items() if name in by_rule},
    }
    (folder / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")


def _fresh_sae(cfg: SAELensTrainConfig, activations: Tensor, module: ITModule) -> tuple[TrainingSAE[Any], float]:
    """An untrained SAE whose decoder bias is the mean activation, and the factor that scales activations for it."""
    if cfg.architecture not in SAE_TRAINING_CLASS_REGISTRY:
        raise ConfigurationError(
            f"SAELens trains no SAE of architecture {cfg.architecture!r}; it has "
            f"{', '.join(SAE_TRAINING_CLASS_REGISTRY)}."
        )
    sae_class, config_class = get_sae_training_class(cfg.architecture)
    d_in = activations.shape[-1]
    config = config_class(
        d_in=d_in,
        d_sae=cfg.d_sae,
        dtype="float32",
        device=str(module.device),
        normalize_activations="expected_average_only_in",
        **cfg.sae_options,
    )
    config.metadata.hook_name = cfg.hook_name
    config.metadata.model_name = module.it_cfg.model_name_or_path
    sae: TrainingSAE[Any] = sae_class(config)
    mean = activations.mean(0)
    scale = math.sqrt(d_in) / (activations - mean).norm(dim=-1).mean().item()
    with torch.no_grad():
        sae.b_dec.copy_(mean * scale)
    return sae, scale


@torch.no_grad()
def _fit_quality(sae: SAE[Any], activations: Tensor) -> Mapping[str, float]:
    """Explained variance, L0 and dead latents on the activations that were trained on.

    BatchTopK and Matryoshka SAEs keep the largest latents of a batch while they are trained and, once saved, those
    above a threshold: figures of the two forms differ.
    """
    residual = variance = active = 0.0
    ever = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.device)
    mean = activations.mean(0).to(sae.device)
    for chunk in activations.split(EVALUATED):
        sample = chunk.to(sae.device)
        latents = sae.encode(sample)
        latents = latents.to_dense() if latents.is_sparse else latents
        residual += (sample - sae.decode(latents)).double().square().sum().item()
        variance += (sample - mean).double().square().sum().item()
        active += (latents > 0).sum().item()
        ever |= (latents > 0).any(0)
    return {
        "explained_variance": round(1 - residual / variance, 4),
        "l0": round(active / len(activations), 2),
        "dead_share": round(1 - ever.float().mean().item(), 4),
    }
