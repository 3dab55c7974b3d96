"""How many attention heads a model has."""

from __future__ import annotations

from typing import Any

NAMES = ("num_attention_heads", "n_heads", "n_head")
"""Names under which configurations store the number of query heads of a block."""


def number_of_heads(model: Any) -> int | None:
    """Number of query heads of a block, if the model's configuration says so."""
    config: Any = getattr(model, "config", None) or getattr(model, "cfg", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = (getattr(config, name, None) for name in NAMES)
    return next((number for number in found if isinstance(number, int)), None)
