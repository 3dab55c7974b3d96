"""What the conformance kit needs to know of this adapter: for ``interpretune doctor`` and for the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sae_lens
from safetensors.torch import save_file

from interpretune.testing import AdapterConformance, ReferenceLatents
from interpretune_saelens.config import SAELensFromDiskConfig

WIDTH, LATENTS = 32, 24
"""Of the residual stream of the kit's tiny models, and of the SAEs."""


class SAELensConformance(AdapterConformance):
    """Sessions with two SAEs: one skips special tokens, the other reads centred activations."""

    adapter = "sae_lens"

    def reference_latents(self) -> Sequence[ReferenceLatents]:
        """Random weights at two hook points."""
        return [
            ReferenceLatents.random(f"layers.{layer}.resid_post", WIDTH, LATENTS, seed=seed, centred=layer == 1)
            for layer, seed in enumerate(range(10 * self.seed, 10 * self.seed + 2))
        ]

    def module_settings(self) -> Mapping[str, Any]:
        """SAEs with these weights, as SAELens saves them."""
        return {
            "sae_cfgs": [
                SAELensFromDiskConfig(path=_saved(truth, self.folder / f"sae-{layer}"), skips_special_tokens=layer == 0)
                for layer, truth in enumerate(self.reference_latents())
            ]
        }


def _saved(truth: ReferenceLatents, folder: Path) -> Path:
    cfg = {
        "architecture": "standard",
        "d_in": WIDTH,
        "d_sae": LATENTS,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": truth.centred,
        "metadata": {
            "sae_lens_version": sae_lens.__version__,  # without it SAELens takes the folder for one of an old format
            "hook_name": truth.hook_point.replace("layers.", "blocks.").replace("resid", "hook_resid"),
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg), encoding="utf-8")
    weights = {"W_enc": truth.w_enc, "b_enc": truth.b_enc, "W_dec": truth.w_dec, "b_dec": truth.b_dec}
    save_file(weights, folder / "sae_weights.safetensors")
    return folder
