"""Generation that returns logits, for both kinds of TransformerLens models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.utilities import sample_logits
from transformers.generation.utils import GenerateDecoderOnlyOutput

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
    if isinstance(model, HookedTransformer):
        return _generate_hooked(model, tokens, attention_mask, **options)
    bridge: Any = model
    return bridge.generate(
        tokens, attention_mask=attention_mask, output_logits=True, return_type="tokens", verbose=False, **options
    )


def _check_options(model: nn.Module, options: Mapping[str, Any]) -> None:
    """A bridge takes whatever it is given and hands what it does not know to each forward, which does not mind."""
    bridge: Any = model
    taken: Any = _generate_hooked if isinstance(model, HookedTransformer) else bridge.generate
    kinds = inspect.signature(taken).parameters
    known = {name for name, kind in kinds.items() if kind.kind is not inspect.Parameter.VAR_KEYWORD}
    known -= {*SET_HERE, "self", "model", "tokens"}
    if unknown := options.keys() - known:
        raise ConfigurationError(
            f"A {type(model).__name__} cannot generate with {', '.join(sorted(unknown))}. It takes: "
            f"{', '.join(sorted({*known, 'num_return_sequences'}))}. For beams and what else transformers has, use a "
            "session without this adapter."
        )


def _generate_hooked(
    model: HookedTransformer,
    tokens: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    do_sample: bool,
    stop_at_eos: bool,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> GenerateDecoderOnlyOutput:
    """A loop of our own: ``HookedTransformer.generate`` takes no mask and guesses it from the tokens."""
    eos = model.tokenizer.eos_token_id if model.tokenizer is not None else None
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    kept = []
    for _ in range(max_new_tokens):
        logits = model(tokens, attention_mask=attention_mask)[:, -1, :]
        kept.append(logits)
        chosen = sample_logits(logits, top_k, top_p, temperature) if do_sample else logits.argmax(dim=-1)
        if stop_at_eos and eos is not None:
            chosen = torch.where(ended, torch.full_like(chosen, eos), chosen)
            ended |= chosen == eos
        tokens = torch.cat([tokens, chosen.unsqueeze(-1)], dim=-1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], dim=-1)
        if ended.all():
            break
    return GenerateDecoderOnlyOutput(sequences=tokens, logits=tuple(kept))
