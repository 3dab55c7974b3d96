"""How many rows run at a time, so that they fit into a share of the free memory of each device that they pass."""

from __future__ import annotations

import psutil
import torch
from torch import Tensor, nn

from interpretune.latents.latent_model import read_points, written_points
from interpretune.models.attention_heads import number_of_heads
from interpretune.replay.prefill import Prefill
from interpretune.system.placement import devices_of

MOST_ROWS = 2048
"""Rows of one replay, if memory allows; with half as many, calls and small products cost a few percent more."""
NAIVE_TOKENS = 4096
"""Tokens of one forward of the plain loop; more are not faster."""
SHARE_OF_FREE_MEMORY = 0.25
"""Share of the free memory that the rows of one replay may take, if no ``row_budget`` is given."""


def replay_budget(prefill: Prefill, columns: Tensor | None) -> int:
    """Rows of one replay: as many as fit into a share of the free memory.

    The cost of a row is the widest tensors that live at the same time: latents of spliced latent models, the MLP,
    scores over the prefix, and logits.
    """
    longest = prefill.inputs.tokens.shape[1]
    size = torch.finfo(prefill.logits.dtype).bits // 8
    heads = number_of_heads(prefill.backend.model) or 16
    several = (
        (item.d_in, len(read_points(item)), len(written_points(item))) for item in prefill.latent_models.values()
    )
    width = max((max(d_in, d_in // reads * writes) for d_in, reads, writes in several), default=1024)
    latents = max((item.d_sae for item in prefill.latent_models.values()), default=0)
    logits = prefill.backend.vocab_size if columns is None else len(columns)
    numbers = 4 * latents + 32 * width + 4 * heads * longest + 2 * logits
    return max(1, min(MOST_ROWS, _room(prefill) // (numbers * size)))


def naive_budget(prefill: Prefill) -> int:
    """Rows of one forward of the plain loop: their latents and logits at all positions fit into the same share."""
    longest = prefill.inputs.tokens.shape[1]
    size = torch.finfo(prefill.logits.dtype).bits // 8
    latents = max((item.d_sae for item in prefill.latent_models.values()), default=0)
    numbers = longest * (3 * latents + 2 * prefill.backend.vocab_size)
    most = max(1, _room(prefill) // (numbers * size))
    return min(most, max(1, NAIVE_TOKENS // longest))


def _room(prefill: Prefill) -> int:
    """Bytes that rows may take where there is least: they pass all devices on which blocks or latent models lie."""
    parts = [prefill.backend.model, *prefill.latent_models.values()]
    devices = {prefill.logits.device, *(at for item in parts if isinstance(item, nn.Module) for at in devices_of(item))}
    return int(SHARE_OF_FREE_MEMORY * min(map(free_bytes, devices)))


def free_bytes(device: torch.device) -> int:
    """Free memory of a device."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    return int(psutil.virtual_memory().available)
