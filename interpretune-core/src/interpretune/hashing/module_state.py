"""What a session's module keeps for its own code: attributes and settings that code of somebody's own names."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from torch import nn

from interpretune.hashing.code_state import names_in, names_in_class

if TYPE_CHECKING:
    from interpretune.session.module import ITModule

KNOWN_OTHERWISE = frozenset(
    {
        *("model", "latent_models", "_latent_models", "latent_modules", "_answer_token_ids"),
        *("it_cfg", "datamodule", "_it_state", "metric", "training", "device", "trainer", "_trainer"),
    }
)
"""Attributes that have an identity of their own, that follow from others, or that only loops and training use."""


def named_state(module: ITModule, functions: Collection[Any] = ()) -> dict[str, Any]:
    """Attributes of a module, and settings of its configuration, that its own classes or some functions name.

    Args:
        module: The module.
        functions: What else reads it.
    """
    found = attributes_named(module, type(module), KNOWN_OTHERWISE, functions)
    return {**found, "it_cfg": attributes_named(module.it_cfg, type(module), KNOWN_OTHERWISE, functions)}


def attributes_named(
    owner: object, kind: type, known_otherwise: Collection[str], functions: Collection[Any] = ()
) -> dict[str, Any]:
    """Attributes of an object that the somebody's own code of a class, or some functions, name.

    Args:
        owner: The object.
        kind: The class.
        known_otherwise: Attributes that are left out.
        functions: The functions.
    """
    named = names_in_class(kind).union(*map(names_in, functions))
    kept = dict(vars(owner))
    for group in ("_buffers", "_parameters", "_modules") if isinstance(owner, nn.Module) else ():
        kept |= kept.get(group, {})
    return {name: kept[name] for name in sorted(named & kept.keys()) if name not in known_otherwise}
