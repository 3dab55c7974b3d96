"""What TransformerLens notes in a model while it runs: of the last forward, or once and for all at the first."""

from __future__ import annotations

NOTED_IN_FORWARDS = frozenset(
    {
        # the last forward
        "_attn_scores",
        "_captured_pre_ln_residual",
        "_conversion_state",
        "_current_batch_size",
        "_executing_container",
        "_fired_hook_out",
        "_last_hf_cache",
        "_pattern",
        "_stop_at_layer_idx",
        "_suppress_next_hook_in",
        "context_level",
        "is_caching",
        # the first forward, or whoever first asked for hook points, from what the model is
        "_block_alias_cache",
        "_derived_position_ids_ok",
        "_hook_registry_initialized",
        "_kv_lora_rank",
        "_mla_params_initialized",
        "_n_heads",
        "_q_lora_rank",
        "_qk_head_dim",
        "_qk_nope_head_dim",
        "_qk_rope_head_dim",
        "_rope_interleave",
        "_v_head_dim",
        # hooks that a bridge wires into itself at its first forward, and that it was done
        "_capture_hook_handles",
        "_capture_hooks_wired",
        "_capture_mlp_in",
        "_capture_pre_ln1",
        "_make_scaled_contribution_hook",
    }
)
"""Names of attributes, and of functions that are hooked in."""
