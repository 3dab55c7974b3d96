"""Loads SAEs that exist already: published, on disk, or fresh from a configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

from interpretune import ConfigurationError, LatentModelError
from interpretune.system import random_state_put_back
from interpretune_saelens.config import SAELensCustomConfig, SAELensFromDiskConfig, SAELensFromPretrainedConfig
from interpretune_saelens.latent_model import SAELatentModel


def load_latent_model(cfg: Any, device: torch.device) -> SAELatentModel:
    """Load the SAE of a configuration, frozen and in evaluation mode; a session that trains it changes both.

    Raises:
        ConfigurationError: The configuration is of no known kind.
        LatentModelError: The SAE cannot be had or read.
    """
    if isinstance(cfg, SAELensFromPretrainedConfig):
        sae, name = _published(cfg, device), f"{cfg.release}/{cfg.sae_id}"
    elif isinstance(cfg, SAELensFromDiskConfig):
        sae, name = load_from_disk(Path(cfg.path), device, cfg.dtype), None
    elif isinstance(cfg, SAELensCustomConfig):
        sae, name = _custom(cfg, device), None
    else:
        raise ConfigurationError(
            f"sae_cfgs has a {type(cfg).__name__}; expected SAELensFromPretrainedConfig, SAELensFromDiskConfig, "
            "SAELensCustomConfig or SAELensTrainConfig."
        )
    latent_model = SAELatentModel(sae, name, cfg.skips_special_tokens, alias=cfg.alias)
    if isinstance(cfg, SAELensCustomConfig):
        latent_model.dead_feature_window = cfg.dead_feature_window
    return latent_model.to(device).eval().requires_grad_(False)


def find_saes(
    release: str, layers: Sequence[int] = (), ids: Sequence[str] = ()
) -> list[SAELensFromDiskConfig] | list[SAELensFromPretrainedConfig]:
    """Choose SAEs from a folder of saved SAEs or from a published release: by layer, by id, or all.

    Args:
        release: The folder, or the release's name in SAELens's directory.
        layers: Layers; in a release, the first number of an SAE's id is its layer.
        ids: Ids in the release, or folders in the folder.

    Raises:
        LatentModelError: A layer has no SAE or several, or an id is unknown.
    """
    folder = Path(release).expanduser()
    if folder.is_dir():
        places = {str(path.parent): _saved_hook(path) for path in sorted(folder.rglob("cfg.json"))}
        ids = [str(folder / item) for item in ids]
    else:
        directory = get_pretrained_saes_directory()
        if release not in directory:
            near = get_close_matches(release, directory, n=3)
            raise LatentModelError(
                f"{release!r} is neither a folder here nor a release that SAELens knows."
                + (f" Similar: {', '.join(near)}." if near else "")
            )
        places = {sae_id: sae_id for sae_id in directory[release].saes_map}
    if not places:
        raise LatentModelError(f"{release} has no SAEs: no folder in it has a cfg.json, as sae.save_model writes it.")
    for sae_id in ids:
        if sae_id not in places:
            near = get_close_matches(sae_id, places, n=3, cutoff=0.3) or list(places)[:3]
            raise LatentModelError(f"{release} has no SAE {sae_id!r}. Nearest of its {len(places)}: {', '.join(near)}.")
    chosen = list(ids or ([] if layers else places))
    for layer in layers:
        found = [place for place, name in places.items() if _first_number(name) == layer]
        if len(found) != 1:
            shown = ", ".join(found[:5] or list(places)[:5])
            raise LatentModelError(
                f"{release} has {len(found) or 'no'} SAEs for layer {layer}"
                + (f": {shown}. Configure one by its id in ITConfig(sae_cfgs=...)." if found else f"; it has {shown}.")
            )
        chosen.append(found[0])
    if folder.is_dir():
        return [SAELensFromDiskConfig(path=place) for place in chosen]
    return [SAELensFromPretrainedConfig(release=release, sae_id=place) for place in chosen]


def _saved_hook(cfg_path: Path) -> str:
    try:
        cfg = json.loads(cfg_path.read_text(encoding="utf-8"))
        return str(cfg.get("metadata", cfg).get("hook_name", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _first_number(name: str) -> int | None:
    found = re.search(r"\d+", name)
    return int(found.group()) if found else None


def load_from_disk(path: Path, device: torch.device, dtype: str | None = None) -> SAE[Any]:
    """Load an SAE from a folder.

    Raises:
        LatentModelError: The folder is missing, incomplete or damaged.
    """
    try:
        sae: SAE[Any] = SAE.load_from_disk(path, device=str(device), dtype=dtype)
    except Exception as error:  # json, safetensors and SAELens raise many kinds; all mean that the folder is unusable
        raise LatentModelError(
            f"No SAE can be loaded from {path}: {type(error).__name__}: {error}. Expected a folder with cfg.json and "
            "sae_weights.safetensors, as sae.save_model(path) writes it."
        ) from error
    return sae


def _published(cfg: SAELensFromPretrainedConfig, device: torch.device) -> SAE[Any]:
    directory = get_pretrained_saes_directory()
    if cfg.release in directory and cfg.sae_id not in directory[cfg.release].saes_map:
        known = list(directory[cfg.release].saes_map)
        near = get_close_matches(cfg.sae_id, known, n=3, cutoff=0.3) or known[:3]
        raise LatentModelError(
            f"The release {cfg.release!r} has no SAE {cfg.sae_id!r}. Nearest of its {len(known)}: {', '.join(near)}."
        )
    try:
        sae: SAE[Any] = SAE.from_pretrained(cfg.release, cfg.sae_id, device=str(device), dtype=cfg.dtype)
    except Exception as error:  # the hub client raises many kinds; all mean that the SAE cannot be had
        near = get_close_matches(cfg.release, directory, n=3)
        raise LatentModelError(
            f"The SAE {cfg.sae_id!r} of {cfg.release!r} cannot be loaded: {type(error).__name__}: {error}. "
            + (f"Releases with similar names: {', '.join(near)}. " if near and cfg.release not in directory else "")
            + "Without a network use SAELensFromDiskConfig(path=...) with a folder saved by SAELens."
        ) from error
    return sae


def _custom(cfg: SAELensCustomConfig, device: torch.device) -> SAE[Any]:
    config = cfg.cfg if isinstance(cfg.cfg, dict) else cfg.cfg.to_dict()
    with random_state_put_back():
        torch.manual_seed(cfg.seed)
        try:
            base = TrainingSAE if _is_for_training(config) else SAE
            sae: SAE[Any] = base.from_dict({**config, "device": str(device)})
        except (KeyError, TypeError, ValueError) as error:
            raise LatentModelError(
                f"SAELensCustomConfig.cfg does not describe an SAE: {type(error).__name__}: {error}. It needs "
                "architecture, d_in, d_sae and metadata with hook_name."
            ) from error
    return sae


def _is_for_training(config: Mapping[str, Any]) -> bool:
    """Whether a configuration has options that only the training class of its architecture has, or no other class."""
    architecture = config.get("architecture")
    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        return False
    if architecture not in SAE_CLASS_REGISTRY:
        return True
    for_training, plain = (
        {item.name for item in fields(registry[architecture][1])}
        for registry in (SAE_TRAINING_CLASS_REGISTRY, SAE_CLASS_REGISTRY)
    )
    return bool(config.keys() & (for_training - plain))
