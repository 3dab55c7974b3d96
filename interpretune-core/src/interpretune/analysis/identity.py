"""Who was asked, and on what: identities of models, latent models and data by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor, nn

from interpretune.analysis.content_hash import hash_function
from interpretune.analysis.latent_model import LatentModel, activation_name

if TYPE_CHECKING:
    from interpretune.module import ITModule

LIBRARIES = ("torch", "transformers")
"""Libraries whose version may change a number."""


@frozen
class DataIdentity:
    """The batches of a split, as the data module gives them.

    Attributes:
        fingerprint: SHA-256 of all their content, 64 hexadecimal digits.
        sizes: Number of examples in each batch.
    """

    fingerprint: str
    sizes: tuple[int, ...]

    def examples(self, batch_idx: int) -> range:
        """Positions in the split of a batch's examples."""
        first = sum(self.sizes[:batch_idx])
        return range(first, first + self.sizes[batch_idx])


def identify_data(batches: Iterable[Mapping[str, Any]], label_key: str = "labels") -> DataIdentity:
    """Go through batches once and hash what is in them.

    Args:
        batches: As a loader gives them.
        label_key: The entry that has one value for each example.
    """
    digest, sizes = hashlib.sha256(), []
    for batch in batches:
        sizes.append(len(batch[label_key]))
        for name in sorted(batch):
            digest.update(name.encode())
            _hash_value(batch[name], digest)
    return DataIdentity(digest.hexdigest(), tuple(sizes))


def identify_model(module: ITModule) -> dict[str, Any]:
    """The model of a module: where it came from, its class, its configuration, and a hash of its weights."""
    model: Any = module.model
    config = getattr(model, "config", None) or getattr(model, "cfg", None)
    return {
        "source": without_folders(str(module.it_cfg.model_name_or_path)),
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "type": str(getattr(config, "model_type", getattr(config, "model_name", ""))),
        "sha256": hash_weights(model),
    }


def identify_latents(latent_model: LatentModel) -> dict[str, Any]:
    """A latent model: its places, its class, its settings, and a hash of its weights."""
    parameters = [value for value in vars(latent_model).items() if isinstance(value[1], Tensor)]
    weights = hash_weights(latent_model) if isinstance(latent_model, nn.Module) else _hash_tensors(parameters)
    cfg = getattr(latent_model, "cfg", None)
    settings = {**_plain(vars(latent_model)), **(_plain(vars(cfg)) if hasattr(cfg, "__dict__") else {})}
    return {
        "name": activation_name(latent_model),
        "hook_point": latent_model.hook_point,
        "output_hook_point": latent_model.output_hook_point,
        "d_sae": latent_model.d_sae,
        "class": f"{type(latent_model).__module__}.{type(latent_model).__qualname__}",
        "settings": settings,
        "dashboard_url": latent_model.dashboard_url(),
        "sha256": weights,
    }


def identify_task(module: ITModule) -> dict[str, str]:
    """What a module makes of logits: its answer columns, special tokens, and the code that reduces and scores them."""
    digest = hashlib.sha256()
    for name in ("standardize_logits", "labels_to_ids", "loss_fn"):
        function = getattr(module, name, None)
        if isinstance(function, nn.Module):
            digest.update(repr(function).encode())
        elif function is not None:
            hash_function(getattr(function, "__func__", function), digest, f"The module's {name}")
    columns = module.answer_columns
    return {
        "answer_columns": str(None if columns is None else columns.tolist()),
        "special_tokens": str(module.backend.special_token_ids().tolist()),
        "code": digest.hexdigest(),
    }


def without_folders(place: str) -> str:
    """The last part of an absolute path; anything else as it is. Stores are shared; folders of a machine need not be.

    Args:
        place: A path, a hub id, or any text.
    """
    return Path(place).name if Path(place).is_absolute() else place


def library_versions(module: ITModule) -> dict[str, str]:
    """Versions of the libraries whose code takes part: the stack's distributions, core, and what they compute with."""
    assert module.context is not None, "a composed module has a context"
    stacked = {item.installed.distribution: item.installed.version for item in module.context.adapters}
    return {**stacked, **{name: _version(name) for name in ("interpretune-core", *LIBRARIES)}}


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers that a state dict has, with their names, shapes and dtypes."""
    return _hash_tensors((name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor))


def _hash_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(named):
        digest.update(name.encode())
        _hash_value(value, digest)
    return digest.hexdigest()


def _hash_value(value: Any, digest: Any) -> None:
    if isinstance(value, Tensor):
        dense = value.detach().contiguous().cpu()
        digest.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
        if dense.numel():
            digest.update(dense.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        digest.update(f"{len(value)}[".encode())
        for item in value:
            _hash_value(item, digest)
    else:
        digest.update(repr(value).encode())


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are numbers, words or yes and no; not those that a run changes."""
    passing = {"training", "device", "dtype"}
    return {
        name: value
        for name, value in sorted(values.items())
        if isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name not in passing
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
