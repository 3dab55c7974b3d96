"""Generation that returns logits, for both kinds of TransformerLens models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from interpretune import ConfigurationError
from interpretune_tlens.config import TLensGenerationConfig

SET_HERE = frozenset({"input", "attention_mask", "output_logits", "return_type", "verbose", "return_cache"})
"""Arguments of a bridge's generation that are not the caller's."""


def generate(
    model: nn.Module, tokens: Tensor, attention_mask: Tensor, num_return_sequences: int = 1, **options: Any
) -> Any:
    """Continue left-padded prompts.

    Args:
        model: A ``TransformerBridge`` or ``HookedTransformer``.
        tokens: ``[batch, pos]``, padded on the left.
        attention_mask: ``[batch, pos]``.
        num_return_sequences: Continuations of each prompt; they stand one after the other.
        **options: See ``TLensGenerationConfig``, whose defaults hold here too.

    Returns:
        An object with ``sequences`` ``[batch, pos + new]`` and ``logits``, a tuple of ``[batch, vocab]``; with several
        continuations of each prompt ``batch`` counts them all.

    Raises:
        ConfigurationError: An option is none of the model's.
    """
    options = {**TLensGenerationConfig().generate_kwargs, **options}
    _check_options(model, options)
    tokens = tokens.repeat_interleave(num_return_sequences, dim=0)
    attention_mask = attention_mask.repeat_interleave(num_return_sequences, dim=0)
    if not isinstance(model, TransformerBridge):
        from interpretune_tlens.hooked import generation

        return generation.generate(model, tokens, attention_mask, **options)
    return model.generate(
        tokens, attention_mask=attention_mask, output_logits=True, return_type="tokens", verbose=False, **options
    )


def _check_options(model: nn.Module, options: Mapping[str, Any]) -> None:
    """A bridge takes whatever it is given and hands what it does not know to each forward, which does not mind."""
    if isinstance(model, TransformerBridge):
        taken: Any = model.generate
    else:
        from interpretune_tlens.hooked.generation import generate as taken
    kinds = inspect.signature(taken).parameters
    known = {name for name, kind in kinds.items() if kind.kind is not inspect.Parameter.VAR_KEYWORD}
    known -= {*SET_HERE, "self", "model", "tokens"}
    if unknown := options.keys() - known:
        raise ConfigurationError(
            f"A {type(model).__name__} cannot generate with {', '.join(sorted(unknown))}. It takes: "
            f"{', '.join(sorted({*known, 'num_return_sequences'}))}. For beams and what else transformers has, use a "
            "session without this adapter."
        )
