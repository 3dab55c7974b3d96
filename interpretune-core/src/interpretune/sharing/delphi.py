"""Latents for delphi, which interprets them automatically: its cache of activations and tokens.

The form is that of ``LatentCache.save_splits`` and ``save_config`` of eai-delphi 0.1.3, which ``LatentDataset`` reads:
for each hook point a folder with ``config.json`` and files of safetensors, named by the first and last latent in each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import numpy as np
from safetensors.numpy import save

from interpretune.sharing.exported_latents import ExportedLatents

WINDOW = 32
"""Tokens of an example of delphi, unless told otherwise; a context is whole windows."""


def delphi_files(latents: ExportedLatents) -> Mapping[str, bytes]:
    """What is written of a dictionary, by path.

    Each prompt is a context of its own, filled up at its end to whole windows that hold the longest.
    """
    rows = latents.prompts.rows
    length = -(-max(map(len, rows)) // WINDOW) * WINDOW
    tokens = np.full((len(rows), length), latents.prompts.pad, np.int64)
    for context, ids in zip(tokens, rows, strict=True):
        context[: len(ids)] = ids
    active = [(card.unit, card.active) for card in latents.cards if card.active is not None]
    found = [np.stack([item.rows, item.positions, np.full(len(item.rows), unit)], axis=-1) for unit, item in active]
    locations, values = np.concatenate(found), np.concatenate([item.values for _, item in active])
    order = np.lexsort(locations.T[::-1])  # as tensors are gone through: by row, then token, then latent
    small = locations.max(initial=0) < 2**16
    arrays = {
        "locations": locations[order].astype(np.uint16 if small else np.uint32),
        "activations": values[order].astype(np.float32),
        "tokens": tokens,
    }
    about = latents.effects.store.manifest.about
    config = {
        "dataset_repo": str(about.get("data", {}).get("source") or ""),
        "dataset_split": str(about.get("split") or ""),
        "dataset_name": "",
        "dataset_column": "prompts",
        "batch_size": len(rows),
        "cache_ctx_len": length,
        "n_tokens": tokens.size,
        "n_splits": 1,
        "model_name": str(about.get("model", {}).get("source") or ""),
    }
    folder = re.sub(r"[^A-Za-z0-9_-]+", ".", latents.place).strip(".") or "latents"
    return {
        f"{folder}/config.json": json.dumps(config).encode(),
        f"{folder}/0_{latents.width - 1}.safetensors": save(arrays),
    }
