from interpretune.activations.eager import run_eagerly as run_eagerly
from interpretune.activations.edits import (
    CARRIED as CARRIED,
    IN as IN,
    OUT as OUT,
    Edit as Edit,
    edited_inputs as edited_inputs,
    edited_output as edited_output,
    in_place as in_place,
)
from interpretune.activations.hook_names import (
    ATTN_K as ATTN_K,
    ATTN_OUT as ATTN_OUT,
    ATTN_PATTERN as ATTN_PATTERN,
    ATTN_Q as ATTN_Q,
    ATTN_V as ATTN_V,
    ATTN_Z as ATTN_Z,
    EMBED as EMBED,
    FINAL_NORM as FINAL_NORM,
    LOGITS as LOGITS,
    MLP_ACT as MLP_ACT,
    MLP_IN as MLP_IN,
    MLP_OUT as MLP_OUT,
    RESID_MID as RESID_MID,
    RESID_POST as RESID_POST,
    RESID_PRE as RESID_PRE,
    HookPoint as HookPoint,
    aliases as aliases,
    canonical_names as canonical_names,
    in_layer as in_layer,
    split_layer as split_layer,
)
from interpretune.activations.inputs import ModelInputs as ModelInputs, Points as Points, probe_inputs as probe_inputs
from interpretune.activations.padding_masks import blind_tokens_attend as blind_tokens_attend
from interpretune.activations.replaced import (
    replaced_method as replaced_method,
    replaced_methods as replaced_methods,
    standing_method as standing_method,
)
