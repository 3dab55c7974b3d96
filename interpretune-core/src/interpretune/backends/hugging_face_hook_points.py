"""Where the canonical hook points of a Hugging Face decoder are: module paths and sides, read from its structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from interpretune.activations.edits import CARRIED, IN, OUT
from interpretune.activations.hook_names import (
    ATTN_OUT,
    ATTN_Z,
    EMBED,
    FINAL_NORM,
    LOGITS,
    MLP_ACT,
    MLP_IN,
    MLP_OUT,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    in_layer,
)
from interpretune.system.compiled import named_parts, uncompiled

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
PROJECTION_NAMES = ("o_proj", "c_proj", "out_proj", "dense")
MLP_NAMES = ("mlp", "feed_forward")
LAST_OF_MLP_NAMES = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "Wo")
FINAL_NORM_NAMES = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
NORM_BEFORE_MLP_NAMES = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "final_layer_norm")
NORMS_AFTER: Sequence[tuple[str, str, Sequence[str]]] = (
    ("post_attention_layernorm", "post_feedforward_layernorm", ("pre_feedforward_layernorm",)),  # Gemma 2 and 3, OLMo 2
    ("post_self_attn_layernorm", "post_mlp_layernorm", NORM_BEFORE_MLP_NAMES),  # GLM 4
)
"""Norms between attention, or the MLP, and the residual stream; and those that may then precede the MLP."""


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList] | None:
    """Path and list of a decoder's blocks; None if no list has as many modules as the configuration has layers."""
    n_layers = model.config.get_text_config().num_hidden_layers
    for path, module in named_parts(model):
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return path, module
    return None


def decoder_hook_points(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Canonical names of a decoder's hook points, each with module path and side (``model.layers.0:in``).

    Only a forward can tell whether the parts of a block are what they seem to be (``parts_as_named``).
    """
    found = decoder_blocks(model)
    if found is None:
        return
    paths = {id(module): path for path, module in named_parts(model)}
    path, blocks = found
    yield from _named(EMBED, paths.get(id(uncompiled(model.get_input_embeddings()))), OUT)
    for layer, block in enumerate(blocks):
        for name, location in _block_hook_points(block):
            yield in_layer(layer, name), f"{path}.{layer}{location}"
    parent = path.rpartition(".")[0]
    norm = _first(model.get_submodule(parent), FINAL_NORM_NAMES)
    yield from _named(FINAL_NORM, norm and f"{parent}.{norm}".lstrip("."), OUT)
    yield from _named(LOGITS, paths.get(id(uncompiled(model.get_output_embeddings()))), OUT)


def _block_hook_points(block: Any) -> Iterator[tuple[str, str]]:
    yield RESID_PRE, f":{IN}"
    attention, mlp = _first(block, ATTENTION_NAMES), _first(block, MLP_NAMES)
    after_attention, after_mlp = attention, mlp
    before_mlp: Sequence[str] = NORM_BEFORE_MLP_NAMES
    for norms in NORMS_AFTER:
        if hasattr(block, norms[0]) and hasattr(block, norms[1]):
            after_attention, after_mlp, before_mlp = norms
    if attention is not None:
        projection = _first(getattr(block, attention), PROJECTION_NAMES)
        if projection is not None:
            yield ATTN_Z, f".{attention}.{projection}:{IN}"
        yield ATTN_OUT, f".{after_attention}:{OUT}"
    if mlp is not None:
        norm = _first(block, before_mlp)
        if attention is not None and (norm is not None or after_mlp != mlp):
            yield RESID_MID, f".{norm or mlp}:{CARRIED}"
        yield MLP_IN, f".{mlp}:{IN}"
        last = _first(getattr(block, mlp), LAST_OF_MLP_NAMES)
        if last is not None:
            yield MLP_ACT, f".{mlp}.{last}:{IN}"
        yield MLP_OUT, f".{after_mlp}:{OUT}"
    yield RESID_POST, f":{OUT}"


def _named(name: str, path: str | None, side: str) -> Iterator[tuple[str, str]]:
    if path:
        yield name, f"{path}:{side}"


def _first(module: nn.Module, names: Sequence[str]) -> str | None:
    return next((name for name in names if hasattr(module, name)), None)
