"""What the installed libraries have, by their metadata: tests of anything else are left out."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

HOOKED = frozenset({"hooked", "folded hooked"})
"""Stacks, as tests call them, with a ``HookedTransformer``."""


def transformer_lens_before_4() -> bool:
    """Whether TransformerLens is installed in a version that has ``HookedTransformer``."""
    try:
        return int(importlib.metadata.version("transformer-lens").partition(".")[0]) < 4
    except importlib.metadata.PackageNotFoundError:
        return False


def needs_hooked_transformer(parameters: Mapping[str, Any]) -> bool:
    """Whether a test with these parameters makes a ``HookedTransformer``."""
    named = {value for value in parameters.values() if isinstance(value, str)}
    return parameters.get("use_bridge") is False or not HOOKED.isdisjoint(named)
