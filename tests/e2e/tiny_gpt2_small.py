"""Stand-ins for GPT-2 small and the SAEs of its attention heads, saved to local folders."""

from __future__ import annotations

from pathlib import Path

import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from transformers import GPT2Config, GPT2LMHeadModel

from tests.tiny import CONTEXT_LENGTH, VOCABULARY, tiny_tokenizer

WIDTH, HEADS, LATENTS = 32, 4, 96


def save_model(folder: Path, *, bos_is_pad: bool = False) -> int:
    """Save a random GPT-2 of twelve layers and its tokenizer.

    Returns:
        The token that pads once the tutorial's override is made: BOS, as in the real GPT-2, where both share an id.
    """
    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_positions=CONTEXT_LENGTH,
        n_embd=WIDTH,
        n_layer=12,
        n_head=HEADS,
        bos_token_id=VOCABULARY["<bos>"],
        eos_token_id=VOCABULARY["<eos>"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.2)
        model.save_pretrained(folder)
    tiny_tokenizer(bos_is_pad=bos_is_pad).save_pretrained(folder)
    return VOCABULARY["<bos>"]


def save_sae(folder: Path, layer: int) -> None:
    """Save a random SAE of a layer's attention heads that reconstructs its input roughly."""
    config = StandardSAEConfig(
        d_in=WIDTH,
        d_sae=LATENTS,
        reshape_activations="hook_z",
        metadata=SAEMetadata(hook_name=f"blocks.{layer}.attn.hook_z", model_name="tiny"),
    )
    generator = torch.Generator().manual_seed(layer)
    sae = StandardSAE(config)
    directions = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=generator), dim=-1)
    with torch.no_grad():
        sae.W_enc.copy_(directions.T)
        sae.W_dec.copy_(directions * 0.7)
        sae.b_enc.fill_(-0.02)
        sae.b_dec.zero_()
    sae.save_model(folder)
