"""Makes hooked transformers, out of Hugging Face models in memory or with random weights."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict

from interpretune import ITConfig, ModelLoadError
from interpretune.models import device_of
from interpretune.system import random_state_put_back
from interpretune_tlens.config import ITLensCustomConfig, ITLensFromPretrainedConfig
from interpretune_tlens.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBE_TOKENS = 16
CONVERSION_TOLERANCE = 1e-3
"""Largest difference of log probabilities, in nats, that a converted model may have from its source in float32."""


def hooked_transformer(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tl_cfg: ITLensFromPretrainedConfig,
    device: torch.device,
) -> nn.Module:
    """Convert a Hugging Face model, and compare both.

    Raises:
        ModelLoadError: It cannot be converted, or the result computes something else.
    """
    hf_config = copy.deepcopy(hf_model.config)
    hf_config.architectures = hf_config.architectures or [type(hf_model).__name__]  # models made in memory have none
    if not hasattr(hf_config, "n_ctx") and hasattr(hf_config, "n_positions"):
        hf_config.n_ctx = hf_config.n_positions  # TransformerLens reads it, GPT-2 configurations made today lack it
    with tempfile.TemporaryDirectory(prefix="model-") as folder, quiet():
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


def make_random(cfg: ITConfig, tl_cfg: ITLensCustomConfig) -> nn.Module:
    """A model of a given configuration, with random weights that the session's seed fixes."""
    custom = HookedTransformerConfig(**tl_cfg.cfg) if isinstance(tl_cfg.cfg, dict) else tl_cfg.cfg
    with tokenizer_of(cfg) as tokenizer, random_state_put_back(), quiet():
        torch.manual_seed(cfg.seed)
        model = HookedTransformer(custom, tokenizer, default_padding_side=tl_cfg.default_padding_side)
        return model.to(device_of(cfg)).eval()


@contextlib.contextmanager
def quiet() -> Any:
    """Drop what TransformerLens prints and its notices that ``HookedTransformer`` will go: it was asked for by name."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
