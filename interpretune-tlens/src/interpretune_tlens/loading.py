"""Makes TransformerLens models out of Hugging Face models in memory, so that no hub is asked a second time."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.loading_from_pretrained import (
    get_official_model_name,
    get_pretrained_model_config,
    get_pretrained_state_dict,
)
from transformer_lens.model_bridge import TransformerBridge

from interpretune import ConfigurationError, ITConfig, ModelLoadError, load_hf_model, load_tokenizer
from interpretune.models import device_of
from interpretune.system import random_state_put_back
from interpretune_tlens.config import ITLensCustomConfig, ITLensFromPretrainedConfig
from interpretune_tlens.dropout import run_dropout_after_attention, show_modes
from interpretune_tlens.trainable import Inventory, freeze_added_parameters, freeze_joint_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE_TOKENS = 16
CONVERSION_TOLERANCE = 1e-3
"""Largest difference of log probabilities, in nats, that a converted model may have from its source in float32."""


def load_model(cfg: ITConfig) -> nn.Module:
    """Make the TransformerLens model of a module's configuration.

    Raises:
        ModelLoadError: The model cannot be loaded, TransformerLens does not know its architecture, a converted model
            does not compute what its source computes, or adapters and quantized weights would be lost.
    """
    tl_cfg: Any = cfg.tl_cfg  # type: ignore[attr-defined]  # a field of ITLensConfig, which the session composes in
    if isinstance(tl_cfg, ITLensCustomConfig):
        return _custom(cfg, tl_cfg)
    if not isinstance(tl_cfg, ITLensFromPretrainedConfig):
        raise ConfigurationError(
            f"tl_cfg is a {type(tl_cfg).__name__}; expected ITLensFromPretrainedConfig, "
            "ITLensFromPretrainedNoProcessingConfig or ITLensCustomConfig."
        )
    if not cfg.model_name_or_path and cfg.hf_model is None and cfg.hf_config is None and tl_cfg.model_name:
        cfg.model_name_or_path = _hub_name(tl_cfg.model_name)
    hf_model = _plain_weights(load_hf_model(replace_model(cfg)), tl_cfg)
    tokenizer = load_tokenizer(cfg) if cfg.model_name_or_path or cfg.tokenizer_name else None
    if tokenizer is not None and tl_cfg.default_padding_side:
        tokenizer.padding_side = tl_cfg.default_padding_side
    make = _bridge if tl_cfg.use_bridge else _hooked
    model: nn.Module = make(hf_model, tokenizer, tl_cfg, device_of(cfg)).eval()
    return model


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
    try:
        return str(get_official_model_name(model_name))
    except ValueError:
        return model_name


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


def _hooked(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tl_cfg: ITLensFromPretrainedConfig,
    device: torch.device,
) -> nn.Module:
    hf_config = copy.deepcopy(hf_model.config)
    hf_config.architectures = hf_config.architectures or [type(hf_model).__name__]  # models made in memory have none
    if not hasattr(hf_config, "n_ctx") and hasattr(hf_config, "n_positions"):
        hf_config.n_ctx = hf_config.n_positions  # TransformerLens reads it, GPT-2 configurations made today lack it
    with tempfile.TemporaryDirectory(prefix="model-") as folder, _quiet():
        hf_config.save_pretrained(folder)  # TransformerLens derives its configuration from files
        try:
            cfg = get_pretrained_model_config(
                str(Path(folder)),
                hf_cfg=hf_config.to_dict(),
                fold_ln=tl_cfg.fold_ln,
                device=str(device),
                dtype=hf_model.dtype,
            )
            cfg.d_mlp = getattr(hf_config, "n_inner", None) or cfg.d_mlp  # TransformerLens takes 4 x d_model for GPT-2
            weights = get_pretrained_state_dict(str(Path(folder)), cfg, hf_model, dtype=hf_model.dtype)
            model = HookedTransformer(
                cfg, tokenizer, move_to_device=False, default_padding_side=tl_cfg.default_padding_side
            )
            model.load_and_process_state_dict(weights, **tl_cfg.processing)
            model.to(device)
        except (ValueError, TypeError, KeyError, NotImplementedError, AttributeError, RuntimeError) as error:
            raise ModelLoadError(
                f"HookedTransformer cannot convert {type(hf_model).__name__}: {type(error).__name__}: {error}. Use "
                "use_bridge=True, which wraps the Hugging Face model instead."
            ) from error
    _check_conversion(hf_model, model)
    return model


def _check_conversion(hf_model: PreTrainedModel, model: HookedTransformer) -> None:
    """Compare log probabilities on a few tokens: a configuration read wrongly changes them."""
    if hf_model.dtype != torch.float32 and hf_model.dtype != torch.float64:
        return
    vocabulary = hf_model.config.get_text_config().vocab_size
    tokens = (torch.arange(PROBE_TOKENS, device=hf_model.device) * 7919 % vocabulary).unsqueeze(0)
    with torch.no_grad():
        expected = hf_model(input_ids=tokens).logits.log_softmax(-1)
        found = model(tokens, attention_mask=torch.ones_like(tokens)).log_softmax(-1)[..., : expected.shape[-1]]
    worst = (expected - found).abs().max().item()
    if not worst <= CONVERSION_TOLERANCE * max(1.0, expected.abs().max().item()):
        raise ModelLoadError(
            f"The HookedTransformer made from {type(hf_model).__name__} differs from it by {worst:.3g} nats in log "
            "probability: TransformerLens read its configuration in another way. Use use_bridge=True."
        )


def _custom(cfg: ITConfig, tl_cfg: ITLensCustomConfig) -> nn.Module:
    custom = HookedTransformerConfig(**tl_cfg.cfg) if isinstance(tl_cfg.cfg, dict) else tl_cfg.cfg
    tokenizer = load_tokenizer(cfg) if cfg.model_name_or_path or cfg.tokenizer_name else None
    with random_state_put_back(), _quiet():
        torch.manual_seed(cfg.seed)
        model = HookedTransformer(custom, tokenizer, default_padding_side=tl_cfg.default_padding_side)
        return model.to(device_of(cfg)).eval()


@contextlib.contextmanager
def _quiet() -> Any:
    """Drop what TransformerLens prints and its notices that ``HookedTransformer`` will go: it was asked for by name."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
