"""Adapters whose numbers are wrong only here or there: in train mode, in large batches, in half precision, ..."""

import torch

FOUND_IN_NUMBERS = {
    # generation
    "generates_greedily": ("sampling-follows-its-options", "most probable token is drawn in 100% of 400 draws"),
    "draws_from_its_own_seed": ("sampling-follows-the-seed", "after torch.manual_seed(2) the same 400 tokens"),
    "generates_a_fixed_number": ("as-many-new-tokens-as-asked", "with max_new_tokens=9 there are 4 new tokens"),
    "generates_past_the_end": ("generation-ends-at-eos", "after its end token"),
    "fills_up_after_the_end": ("generation-ends-at-eos", "[7, 7, 7] after its end token"),
    "ignores_options_of_generation": ("generation-heeds-its-options", "num_return_sequences=2 is ignored"),
    # hook points
    "edits_in_evaluation_mode_only": ("edits-in-train-mode", "with an edit at embed in train mode"),
    "answers_one_early_in_large_batches": ("larger-batches-agree", "the backend's run, 17 rows padded on the right"),
    "edits_one_early_in_large_batches": ("larger-batches-agree", "with an edit at", "17 rows padded on the right"),
    "takes_layer_10_for_layer_1": ("layers-of-two-digits", "a model of many layers has no layers.1.attn_out"),
    "forgets_the_last_norm": ("unembedding-agrees", "logits of unembed(final_norm(vectors))"),
    "edits_layer_10_with_layer_1": ("layers-of-two-digits", "a model of many layers has no layers.1"),
    "cuts_gradients_at_one_hook_point": ("gradients-at-every-hook-point", "through an edit at layers.2.attn_out"),
    "detaches_gradients": ("gradients-at-every-hook-point", "through an edit at layers.0.resid_post"),
    "averages_gradients": ("gradients-agree", "gradients at layers.0.resid_post"),
    "remembers_batches": ("nothing-stale-after-a-step", "logits of a run with a cache", "as before it"),
    "edits_in_single_precision": ("edits-in-the-models-dtype", "an edit at embed gets torch.float32"),
    "gives_single_precision_logits": ("logits-in-the-models-dtype", "in torch.bfloat16 are in torch.float32"),
    "replaces_outer_edits": ("nested-edits-add-up", "in a block with another"),
    "own_names_edit_a_neighbour": ("own-names-edit-what-they-read", "self_attn.q_proj"),
    "own_names_edit_what_is_not_read": ("own-names-edit-what-they-read", "model.layers.2.mlp.down_proj:out"),
    "inputs_reach_the_skip": ("input-edits-spare-the-skip", "reaches the residual stream around the module"),
    # latent models
    "forgets_the_decoder_bias": ("latents-decode-with-their-bias", "where no latent is active, its bias"),
    "centres_what_was_not_centred": ("latents-encode-as-trained", "acme/layers.0.resid_post"),
    "attaches_a_layer_too_high": ("latents-read-where-they-say", "layers.2.resid_post", "as reference_latents() says"),
    "encodes_nothing_in_training": ("latents-in-train-mode", "in train mode no latent"),
}
"""Each breaks one rule and no other."""

OTHER_FORMS = (
    ("edits_in_evaluation_mode_only", {"PLACES": "resid_mid"}),
    ("edits_in_evaluation_mode_only", {"PLACES": "layers.2.attn_z"}),
    ("answers_one_early_in_large_batches", {"ROWS": 7}),
    ("answers_one_early_in_large_batches", {"ROWS": 12, "SIDE": 0}),
    ("edits_one_early_in_large_batches", {"ROWS": 8}),
    ("edits_one_early_in_large_batches", {"SIDE": 0}),
    ("takes_layer_10_for_layer_1", {"NAMES": r"model\.layers\..*"}),
    ("takes_layer_10_for_layer_1", {"NAMES": r"layers\.11\.mlp_out"}),
    ("cuts_gradients_at_one_hook_point", {"PLACE": "embed"}),
    ("cuts_gradients_at_one_hook_point", {"PLACE": "final_norm"}),
    ("cuts_gradients_at_one_hook_point", {"PLACE": "layers.0.attn_z"}),
    ("cuts_gradients_at_one_hook_point", {"PLACE": "model.layers.1.self_attn.v_proj:out"}),
    ("remembers_batches", {"METHOD": "run"}),
    ("remembers_batches", {"METHOD": "capture"}),
    ("remembers_batches", {"METHOD": "run_spliced"}),
    ("remembers_batches", {"METHOD": "prefill"}),
    ("edits_in_single_precision", {"PLACES": "layers.1.mlp_out"}),
    ("edits_in_single_precision", {"PLACES": "logits"}),
    ("edits_in_single_precision", {"PLACES": "attn_z", "ROUNDS": False}),
    ("gives_single_precision_logits", {"HALVES": (torch.float64,)}),
    ("replaces_outer_edits", {"ALL": True}),
    ("own_names_edit_a_neighbour", {"SLIP": {"mlp.up_proj": "mlp.gate_proj"}}),
    ("own_names_edit_a_neighbour", {"SLIP": {"input_layernorm": "post_attention_layernorm"}}),
    (
        "own_names_edit_what_is_not_read",
        {"SHOWN": "model.layers.2.self_attn.o_proj:out", "EDITED": "model.norm:out"},
    ),
    ("inputs_reach_the_skip", {"MODULES": "post_attention_layernorm"}),
    ("generates_greedily", {"IGNORED": ("temperature",)}),
    ("generates_greedily", {"IGNORED": ("top_k",)}),
    ("generates_greedily", {"IGNORED": ("top_p",)}),
    ("draws_from_its_own_seed", {"SEED": None}),
    ("fills_up_after_the_end", {"FILL": 40}),
    ("generates_a_fixed_number", {"MOST": 8}),
    ("ignores_options_of_generation", {"KNOWN": ("max_new_tokens", "do_sample", "num_return_sequences")}),
    (
        "ignores_options_of_generation",
        {"KNOWN": ("max_new_tokens", "do_sample", "num_return_sequences", "eos_token_id", "suppress_tokens")},
    ),
    ("forgets_the_decoder_bias", {"SHARE": 1.0, "WithoutBias.has_skip_connection": False}),
    ("forgets_the_decoder_bias", {"SHARE": 0.9}),
    ("centres_what_was_not_centred", {"CENTRED": False}),
    ("attaches_a_layer_too_high", {"AttachesALayerTooHigh.places": ("layers.1.resid_post", "layers.0.resid_post")}),
    ("encodes_nothing_in_training", {"KEPT": 0.5}),
)
"""The same bugs in other forms, by what is set in their modules."""
