"""Who was asked, and on what: identities of models, latent models, tasks and data by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from torch import Tensor, nn

from interpretune.analysis.content_hash import hash_module, hash_of, plain_settings
from interpretune.analysis.latent_model import LatentModel, activation_name
from interpretune.errors import DataError

if TYPE_CHECKING:
    from interpretune.module import ITModule

LIBRARIES = ("torch", "transformers")
"""Libraries whose version may change a number."""
NAMES_NOTHING = ("_name_or_path", "name_or_path", "transformers_version", "model_name", "tokenizer_name", "device")
"""Entries of a model's configuration that say where it is from, not what it computes."""


@frozen
class DataIdentity:
    """The batches of a split, as the data module gives them.

    Attributes:
        fingerprint: SHA-256 of all their content, 64 hexadecimal digits.
        batches: The same of each batch.
        sizes: Number of examples in each batch.
    """

    fingerprint: str
    batches: tuple[str, ...]
    sizes: tuple[int, ...]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.sizes))

    def examples(self, batch_idx: int) -> range:
        """Positions in the split of a batch's examples."""
        return range(self._ends[batch_idx] - self.sizes[batch_idx], self._ends[batch_idx])


def identify_data(batches: Iterable[Mapping[str, Any]]) -> DataIdentity:
    """Go through batches once and hash what is in them.

    Raises:
        DataError: A batch has no labels.
    """
    hashes, sizes = [], []
    for batch in batches:
        sizes.append(count_examples(batch))
        hashes.append(identify_batch(batch))
    return DataIdentity(hashlib.sha256("".join(hashes).encode()).hexdigest(), tuple(hashes), tuple(sizes))


def identify_batch(batch: Mapping[str, Any]) -> str:
    """SHA-256 of all that a batch holds.

    Raises:
        PlanError: It holds something whose content cannot be hashed.
    """
    return hash_of(dict(batch), "The batch")


def count_examples(batch: Mapping[str, Any]) -> int:
    """Number of examples in a batch.

    Raises:
        DataError: It has no labels.
    """
    if "labels" not in batch:
        raise DataError(f"A batch to analyse needs the entry 'labels'; this one has {', '.join(map(str, batch))}.")
    return len(batch["labels"])


def identify_model(module: ITModule) -> dict[str, Any]:
    """The model of a module: where it came from, its class, and a hash of weights, settings and configuration."""
    model: Any = module.model
    config = getattr(model, "config", None) or getattr(model, "cfg", None)
    about: dict[str, Any] = {}
    if config is not None:
        about = config.to_dict() if hasattr(config, "to_dict") else dict(vars(config))
    told = plain_settings({name: value for name, value in about.items() if name not in NAMES_NOTHING})
    nested = {name: plain_settings(value) for name, value in about.items() if isinstance(value, Mapping)}
    return {
        "source": without_folders(str(module.it_cfg.model_name_or_path)),
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "type": str(about.get("model_type", about.get("model_name", ""))),
        "sha256": hash_of([hash_module(model, "The model"), told, nested], "The model"),
    }


def identify_latents(latent_model: LatentModel) -> dict[str, Any]:
    """A latent model: its places, its class, its settings, and a hash of weights, settings and code."""
    cfg = getattr(latent_model, "cfg", None)
    settings = {**plain_settings(vars(latent_model)), **plain_settings(getattr(cfg, "__dict__", {}))}
    owner, kind = f"The latent model {latent_model.name}", type(latent_model)
    tensors = {name: value for name, value in vars(latent_model).items() if isinstance(value, Tensor)}
    content = hash_module(latent_model, owner) if isinstance(latent_model, nn.Module) else hash_of(tensors, owner)
    return {
        "name": activation_name(latent_model),
        "hook_point": latent_model.hook_point,
        "output_hook_point": latent_model.output_hook_point,
        "d_sae": latent_model.d_sae,
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "settings": {name: value for name, value in settings.items() if isinstance(value, (bool, int, float, str))},
        "dashboard_url": latent_model.dashboard_url(),
        "sha256": hash_of([content, settings, kind], owner),
    }


def identify_task(module: ITModule) -> dict[str, str]:
    """What a module makes of logits: its answer columns, special tokens, and the code that reduces and scores them."""
    parts = {name: getattr(module, name, None) for name in ("standardize_logits", "labels_to_ids", "loss_fn")}
    columns = module.answer_columns
    return {
        "answer_columns": str(None if columns is None else columns.tolist()),
        "special_tokens": str(module.backend.special_token_ids().tolist()),
        "code": hash_of(parts, "What the module makes of logits"),
    }


def library_versions(module: ITModule) -> dict[str, str]:
    """Versions of the libraries whose code takes part: the stack's distributions, core, and what they compute with."""
    assert module.context is not None, "a composed module has a context"
    stacked = {item.installed.distribution: item.installed.version for item in module.context.adapters}
    return {**stacked, **{name: _version(name) for name in ("interpretune-core", *LIBRARIES)}}


def without_folders(place: str) -> str:
    """The last part of an absolute path; anything else as it is. Stores are shared; folders of a machine need not be.

    Args:
        place: A path, a hub id, or any text.
    """
    return Path(place).name if Path(place).is_absolute() else place


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
