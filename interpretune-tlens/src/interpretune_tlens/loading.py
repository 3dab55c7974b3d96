"""Makes TransformerLens models out of Hugging Face models in memory, so that no hub is asked a second time."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

from interpretune import ConfigurationError, ITConfig, ModelLoadError, load_hf_model
from interpretune.models import device_of
from interpretune.system import random_state_put_back
from interpretune_tlens.config import ITLensCustomConfig, ITLensFromPretrainedConfig
from interpretune_tlens.dropout import run_dropout_after_attention, show_modes
from interpretune_tlens.tokenizer import tokenizer_of
from interpretune_tlens.trainable import Inventory, freeze_added_parameters, freeze_joint_parameters
from interpretune_tlens.versions import check_hooked_transformer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(cfg: ITConfig) -> nn.Module:
    """Make the TransformerLens model of a module's configuration.

    Raises:
        ModelLoadError: The model cannot be loaded, TransformerLens does not know its architecture, a converted model
            does not compute what its source computes, adapters and quantized weights would be lost, or a
            ``HookedTransformer`` is asked for where the installed TransformerLens has none.
    """
    tl_cfg: Any = cfg.tl_cfg  # type: ignore[attr-defined]  # a field of ITLensConfig, which the session composes in
    if isinstance(tl_cfg, ITLensCustomConfig):
        check_hooked_transformer("For random weights, name an architecture of transformers in hf_config")
        from interpretune_tlens.hooked.loading import make_random

        return make_random(cfg, tl_cfg)
    if not isinstance(tl_cfg, ITLensFromPretrainedConfig):
        raise ConfigurationError(
            f"tl_cfg is a {type(tl_cfg).__name__}; expected ITLensFromPretrainedConfig, "
            "ITLensFromPretrainedNoProcessingConfig or ITLensCustomConfig."
        )
    if not tl_cfg.use_bridge:
        check_hooked_transformer("Write use_bridge=True for a TransformerBridge")
    if not cfg.model_name_or_path and cfg.hf_model is None and cfg.hf_config is None and tl_cfg.model_name:
        cfg.model_name_or_path = _hub_name(tl_cfg.model_name)
    hf_model = _plain_weights(load_hf_model(replace_model(cfg)), tl_cfg)
    with tokenizer_of(cfg) as tokenizer:
        if tokenizer is not None and tl_cfg.default_padding_side:
            tokenizer.padding_side = tl_cfg.default_padding_side
        model: nn.Module = convert(hf_model, tokenizer, tl_cfg, device_of(cfg)).eval()
    return model


def convert(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tl_cfg: ITLensFromPretrainedConfig,
    device: torch.device,
) -> nn.Module:
    """Make a TransformerLens model of the asked kind out of a Hugging Face model, which it takes apart.

    Raises:
        ConfigurationError: A bridge is asked for without a tokenizer.
        ModelLoadError: TransformerLens does not know the architecture, or the result computes something else.
    """
    if tl_cfg.use_bridge:
        return _bridge(hf_model, tokenizer, tl_cfg, device)
    from interpretune_tlens.hooked.loading import hooked_transformer

    return hooked_transformer(hf_model, tokenizer, tl_cfg, device)


def replace_model(cfg: ITConfig) -> ITConfig:
    """The configuration with a copy of the caller's model: TransformerLens takes the model that it is given apart."""
    return cfg if cfg.hf_model is None else replace(cfg, hf_model=copy.deepcopy(cfg.hf_model))


def _plain_weights(hf_model: Any, tl_cfg: ITLensFromPretrainedConfig) -> PreTrainedModel:
    """The transformers model itself, where TransformerLens can keep what was added to it.

    Raises:
        ModelLoadError: Its weights are quantized or have adapters, and they would have to be rewritten.
    """
    kinds = {
        "adapters (LoRA or similar)": getattr(hf_model, "peft_config", None),
        "quantized weights": getattr(hf_model, "is_quantized", False) or getattr(hf_model, "hf_quantizer", None),
    }
    found = [kind for kind, is_there in kinds.items() if is_there]
    if found and not tl_cfg.use_bridge:
        raise ModelLoadError(
            f"{type(hf_model).__name__} has {' and '.join(found)}, which the conversion into a HookedTransformer would "
            "lose. Use use_bridge=True, which wraps the Hugging Face model as it is."
        )
    if found and any(tl_cfg.processing.values()):
        raise ModelLoadError(
            f"{type(hf_model).__name__} has {' and '.join(found)}, and TransformerLens's weight processing rewrites "
            "plain weights only. Use tl_cfg=ITLensFromPretrainedNoProcessingConfig(use_bridge=True)."
        )
    config = getattr(hf_model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise ModelLoadError(
            f"{type(hf_model).__name__} has learned prompts ({type(config).__name__}), which stand outside the layers "
            "that TransformerLens wraps and would be lost. Stack ('core',) without transformer_lens."
        )
    unwrap = getattr(hf_model, "get_base_model", None)  # of peft's wrapper; its adapters are within the layers
    model: PreTrainedModel = unwrap() if unwrap is not None else hf_model
    return model


def _hub_name(model_name: str) -> str:
    """The name on the hub of what TransformerLens calls otherwise."""
    wanted = model_name.lower()
    known = ((name, {name, *MODEL_ALIASES.get(name, ())}) for name in OFFICIAL_MODEL_NAMES)
    return next((name for name, names in known if wanted in map(str.lower, names)), model_name)


def _bridge(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tl_cfg: ITLensFromPretrainedConfig,
    device: torch.device,
) -> nn.Module:
    if tokenizer is None:
        raise ConfigurationError(
            "A TransformerBridge needs a tokenizer, and the module's configuration names none. Set "
            "shared_cfg.tokenizer_name (or model_name_or_path) to a folder or id that has one."
        )
    before = Inventory.of(hf_model)
    # building the wrappers draws from the global generator
    with _tokenizer_folder(tokenizer) as folder, random_state_put_back():
        try:
            bridge = TransformerBridge.boot_transformers(
                folder, hf_model=hf_model, tokenizer=tokenizer, device=str(device), dtype=hf_model.dtype
            )
        except (ValueError, KeyError, NotImplementedError) as error:
            raise ModelLoadError(
                f"TransformerLens cannot build a bridge for {type(hf_model).__name__}: {error}. Its "
                "documentation lists the architectures; without TransformerLens, stack ('core',) alone."
            ) from error
    freeze_joint_parameters(bridge, before)
    if not any(tl_cfg.processing.values()):
        freeze_added_parameters(before)
    else:
        bridge.enable_compatibility_mode(disable_warnings=True, **tl_cfg.processing)
    run_dropout_after_attention(bridge)
    show_modes(bridge)
    return bridge


@contextlib.contextmanager
def _tokenizer_folder(tokenizer: PreTrainedTokenizerBase | None) -> Any:
    """A folder from which TransformerLens can load the tokenizer again, which it does by its ``name_or_path``."""
    if tokenizer is None:
        yield "local-model"
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        before, tokenizer.name_or_path = tokenizer.name_or_path, folder
        try:
            yield folder
        finally:
            tokenizer.name_or_path = before
