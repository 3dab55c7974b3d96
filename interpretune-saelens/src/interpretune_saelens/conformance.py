"""What the conformance kit needs to know of this adapter: for ``interpretune doctor`` and for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interpretune.testing import AdapterConformance
from interpretune_saelens.config import SAELensCustomConfig

WIDTH = 32
"""Of the residual stream of the kit's tiny models."""


class SAELensConformance(AdapterConformance):
    """Sessions with two SAEs, one of which skips special tokens."""

    adapter = "sae_lens"

    def module_settings(self) -> Mapping[str, Any]:
        """SAEs with fresh weights."""
        return {"sae_cfgs": [_sae(0, skips=True), _sae(1, skips=False)]}


def _sae(layer: int, *, skips: bool) -> SAELensCustomConfig:
    cfg = {
        "architecture": "standard",
        "d_in": WIDTH,
        "d_sae": 24,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"},
    }
    return SAELensCustomConfig(cfg=cfg, seed=layer, skips_special_tokens=skips)
