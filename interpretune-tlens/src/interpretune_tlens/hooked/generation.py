"""Generation with hooked transformers, and their cache of keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, TransformerLensKeyValueCache
from transformer_lens.utilities import sample_logits
from transformers.generation.utils import GenerateDecoderOnlyOutput


def generate(
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


def slots_in(value: Any) -> int | None:
    """How many slots a cache of this class holds; None: the value is none."""
    return int(value[0].past_keys.shape[1]) if isinstance(value, TransformerLensKeyValueCache) else None
