"""The TransformerLens adapter: loads the model, runs it with its mask, generates, and supplies the backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interpretune import AdapterDeclaration, ClassContribution, ITModule, hookimpl, pad_left
from interpretune.models import ATTENTION_MASK, check_batch_keys, forward_signature, mask_of, tokens_of
from interpretune_tlens.backend import TransformerLensBackend, padding_attends
from interpretune_tlens.config import ITLensConfig
from interpretune_tlens.generation import generate
from interpretune_tlens.loading import load_model
from interpretune_tlens.parameter_names import name_parameters


class TransformerLensAdapter:
    """Puts a ``TransformerBridge`` (or ``HookedTransformer``) under the module."""

    declaration = AdapterDeclaration(name="transformer_lens", level="model", contract="1.0")

    @hookimpl
    def it_contribute_classes(self) -> ClassContribution:
        """The field ``tl_cfg`` of the module's configuration."""
        return ClassContribution(adapter="transformer_lens", module_cfg=(ITLensConfig,))

    @hookimpl
    def it_load_model(self, module: ITModule) -> nn.Module:
        """Make a TransformerLens model."""
        return load_model(module.it_cfg)

    @hookimpl
    def it_name_parameters(self, module: ITModule) -> Mapping[str, Sequence[str]]:
        """TransformerLens's names: ``blocks.0.attn.W_Q``, ``ln_final.w``, ..."""
        return name_parameters(module.model)

    @hookimpl
    def it_forward(self, module: ITModule, batch: Mapping[str, Any]) -> Tensor:
        """Logits ``[batch, pos, vocab]``; the attention mask always goes along."""
        name, tokens = tokens_of(batch)
        if len(tokens) > 1:
            mask_of(batch)  # rows of a batch may be padded, and without their mask the logits would be wrong
        rest = {key: value for key, value in batch.items() if key != name}
        model: Any = module.model
        check_batch_keys(getattr(model, "original_model", model), rest, also=forward_signature(model).named)
        with padding_attends(model, rest.get(ATTENTION_MASK, torch.ones_like(tokens))):
            logits: Tensor = model(tokens, **rest)
        return logits

    @hookimpl
    def it_generate(self, module: ITModule, batch: Mapping[str, Any], generation_kwargs: Mapping[str, Any]) -> Any:
        """Generate with logits, padding moved to the left."""
        tokens, mask = pad_left(tokens_of(batch)[1], mask_of(batch))
        with torch.no_grad(), padding_attends(module.model, mask):
            return generate(module.model, tokens, mask, **generation_kwargs)

    @hookimpl
    def it_create_backend(self, module: ITModule) -> TransformerLensBackend:
        """The backend of TransformerLens hook points."""
        tokenizer = module.datamodule.tokenizer if module.datamodule is not None else None
        return TransformerLensBackend(module.model, tokenizer)


adapter = TransformerLensAdapter()
