"""Models whose rotary embedding follows the longest row of a batch, so that rows depend on each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from interpretune.activations.inputs import ModelInputs

BY_LONGEST = ("longrope", "dynamic")
"""Kinds of rotary embeddings that transformers recomputes from the longest row of a batch."""


def follows_longest_row(models: Iterable[nn.Module], inputs: ModelInputs) -> str | None:
    """Why the numbers of a row depend on the longest row of its batch, as text; None if they do not.

    Args:
        models: The model, and models within it.
        inputs: The batch; short ones are computed like any other model's.
    """
    for model in models:
        for kind, limit in _limits(getattr(model, "config", None)):
            if inputs.tokens.shape[1] > limit:
                return (
                    f"The rotary embedding of {type(model).__name__} ({kind}) follows the longest row of a batch, of "
                    f"{inputs.tokens.shape[1]} tokens here, where that has more than {limit}: the numbers of a row "
                    "depend on the rows beside it. Effects are those of the batch as it is; put rows of like length "
                    "into a batch, or one row."
                )
    return None


def _limits(config: Any) -> Iterator[tuple[str, int]]:
    """Kinds of embeddings that follow the longest row, and the length up to which they do not."""
    text = getattr(config, "get_text_config", lambda: config)()
    settings = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = [item for item in settings.values() if isinstance(item, Mapping)]
    for item in nested or [settings]:
        kind = item.get("rope_type", item.get("type"))
        if kind in BY_LONGEST:
            names = ("original_max_position_embeddings", "max_position_embeddings")
            found = [item.get(names[0]), *(getattr(text, name, None) for name in names)]
            yield kind, min((limit for limit in found if isinstance(limit, int)), default=0)
