"""Where the canonical places of a Hugging Face decoder are: module paths and sides, read from its structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from interpretune.analysis.hook_names import (
    ATTN_OUT,
    ATTN_Z,
    EMBED,
    FINAL_NORM,
    LOGITS,
    MLP_IN,
    MLP_OUT,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    in_layer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IN, OUT = "in", "out"
CARRIED = "carried"
"""The input of a module, together with the skip connection around it."""

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
PROJECTION_NAMES = ("o_proj", "c_proj", "out_proj", "dense")
MLP_NAMES = ("mlp", "feed_forward")
FINAL_NORM_NAMES = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
POST_ATTENTION_NORM = "post_attention_layernorm"
POST_MLP_NORM = "post_feedforward_layernorm"
"""Where both exist (Gemma 2 and 3), they stand between a sublayer and the residual stream."""

NORM_BEFORE_MLP_NAMES = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "final_layer_norm")


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList] | None:
    """Path and list of a decoder's blocks; None where no list has as many modules as the configuration has layers."""
    n_layers = model.config.get_text_config().num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return path, module
    return None


def decoder_places(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Canonical names of a decoder's places, each with module path and side (``model.layers.0:in``).

    ``resid_mid`` is named wherever the structure has a norm in front of the MLP; whether the residual stream passes
    there, only a forward can tell (``interpretune.analysis.middle``).
    """
    found = decoder_blocks(model)
    if found is None:
        return
    paths = {id(module): path for path, module in model.named_modules()}
    path, blocks = found
    yield from _named(EMBED, paths.get(id(model.get_input_embeddings())), OUT)
    for layer, block in enumerate(blocks):
        for name, place in _block_places(block):
            yield in_layer(layer, name), f"{path}.{layer}{place}"
    parent = path.rpartition(".")[0]
    norm = _first(model.get_submodule(parent), FINAL_NORM_NAMES)
    yield from _named(FINAL_NORM, norm and f"{parent}.{norm}".lstrip("."), OUT)
    yield from _named(LOGITS, paths.get(id(model.get_output_embeddings())), OUT)


def _block_places(block: Any) -> Iterator[tuple[str, str]]:
    yield RESID_PRE, f":{IN}"
    normed = hasattr(block, POST_MLP_NORM)
    attention, mlp = _first(block, ATTENTION_NAMES), _first(block, MLP_NAMES)
    if attention is not None:
        projection = _first(getattr(block, attention), PROJECTION_NAMES)
        if projection is not None:
            yield ATTN_Z, f".{attention}.{projection}:{IN}"
        yield ATTN_OUT, f".{POST_ATTENTION_NORM if normed else attention}:{OUT}"
    if mlp is not None:
        norm = _first(block, NORM_BEFORE_MLP_NAMES[:1] if normed else NORM_BEFORE_MLP_NAMES)
        if attention is not None and (normed or norm is not None):
            yield RESID_MID, f".{norm or mlp}:{CARRIED}"
        yield MLP_IN, f".{mlp}:{IN}"
        yield MLP_OUT, f".{POST_MLP_NORM if normed else mlp}:{OUT}"
    yield RESID_POST, f":{OUT}"


def _named(name: str, path: str | None, side: str) -> Iterator[tuple[str, str]]:
    if path:
        yield name, f"{path}:{side}"


def _first(module: nn.Module, names: Sequence[str]) -> str | None:
    return next((name for name in names if hasattr(module, name)), None)
