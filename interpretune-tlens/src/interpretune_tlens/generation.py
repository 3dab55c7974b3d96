"""Generation that returns logits, for both kinds of TransformerLens models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.utilities import sample_logits
from transformers.generation.utils import GenerateDecoderOnlyOutput

from interpretune_tlens.config import TLensGenerationConfig


def generate(model: nn.Module, tokens: Tensor, attention_mask: Tensor, **options: Any) -> Any:
    """Continue left-padded prompts.

    Args:
        model: A ``TransformerBridge`` or ``HookedTransformer``.
        tokens: ``[batch, pos]``, padded on the left.
        attention_mask: ``[batch, pos]``.
        **options: See ``TLensGenerationConfig``, whose defaults hold here too.

    Returns:
        An object with ``sequences`` ``[batch, pos + new]`` and ``logits``, a tuple of ``[batch, vocab]``.
    """
    options = {**TLensGenerationConfig().generate_kwargs, **options}
    if isinstance(model, HookedTransformer):
        return _generate_hooked(model, tokens, attention_mask, **options)
    bridge: Any = model
    return bridge.generate(
        tokens, attention_mask=attention_mask, output_logits=True, return_type="tokens", verbose=False, **options
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
