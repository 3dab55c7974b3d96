"""What the conformance kit needs to know of this adapter: for ``interpretune doctor`` and for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interpretune.testing import AdapterConformance
from interpretune_tlens.config import ITLensFromPretrainedNoProcessingConfig


class TransformerLensConformance(AdapterConformance):
    """Sessions with a ``TransformerBridge``, whose activations are those of the Hugging Face model."""

    adapter = "transformer_lens"
    use_bridge = True
    conditional_hook_points = (
        r"blocks\.\d+\.(attn\.)?hook_(attn_in|[qkv]_input)",  # cfg.use_attn_in, cfg.use_split_qkv_input
        r"blocks\.\d+\.attn\.hook_result",  # cfg.use_attn_result
        r"blocks\.\d+\.hook_mlp_in",  # cfg.use_hook_mlp_in
        r"blocks\.\d+\.attn\.(hook_hidden_states|qkv\.hook_(in|out))|rotary_emb\.hook_out|hook_pos_embed",
    )

    def module_settings(self) -> Mapping[str, Any]:
        """Models without weight processing: with it, activations are rightly others than those of the plain model."""
        return {"tl_cfg": ITLensFromPretrainedNoProcessingConfig(use_bridge=self.use_bridge)}


class HookedTransformerConformance(TransformerLensConformance):
    """Sessions with a ``HookedTransformer``."""

    use_bridge = False
