"""What a session's module and data module hold beside what is known otherwise: all that somebody set on them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from interpretune.hashing.object_state import attributes_of, passing_of

if TYPE_CHECKING:
    from interpretune.session.module import ITModule

KNOWN_OTHERWISE = frozenset(
    {
        *("model", "latent_models", "_latent_models", "latent_modules", "_answer_token_ids"),
        *("it_cfg", "datamodule", "_it_state", "metric", "device", "trainer"),
    }
)
"""Attributes of a module that have an identity of their own, that follow from others, or that only loops use."""

WHERE_FROM = frozenset(
    {
        *("model_name_or_path", "hf_from_pretrained_cfg", "hf_model", "hf_config", "lora", "latent_models", "seed"),
        *("tokenizer", "tokenizer_name", "tokenizer_kwargs", "tokenizer_id_overrides", "trust_remote_code"),
        *("cache_dir", "device", "profile_memory", "auto_comp_cfg", "awaiting_composition"),
        *("train_latent_models", "freeze", "optimizer_init", "lr_scheduler_init"),
    }
)
"""Settings of a module's configuration that say where model and latent models come from, or how they are trained.

What they are counts by its content.
"""


def module_state(module: ITModule) -> dict[str, Any]:
    """Attributes of a module and settings of its configuration, but for what is known otherwise."""
    found = attributes_set(module, KNOWN_OTHERWISE)
    known = [module.model, *module.latent_models]
    kept = {name: item for name, item in found.items() if not any(item is one for one in known)}
    settings = attributes_set(module.it_cfg, WHERE_FROM)
    return {"attributes": kept, "it_cfg": settings, "it_cfg's class": type(module.it_cfg)}


def attributes_set(owner: object, known_otherwise: Collection[str]) -> dict[str, Any]:
    """Attributes of an object by name, but for some and for those that its classes list in ``passing_state``."""
    return attributes_of(owner, {*known_otherwise, *passing_of(type(owner))})
