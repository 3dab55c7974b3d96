"""The adapter: loads the model, runs it with its mask, generates, and supplies the backend of analyses.

Where to go on: ``model.py`` is the place of the library that shall run the model, ``backend.py`` that of its hook
points. A configuration of your own is a dataclass that ``it_contribute_classes`` adds to ``ITConfig``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from interpretune import AdapterDeclaration, ITModule, hookimpl, load_hf_model, pad_left
from interpretune.models import check_batch_keys, mask_of, tokens_of
from torch import Tensor, nn

from interpretune_adaptername.backend import AdapterNameBackend, backend_of_model
from interpretune_adaptername.model import AdapterNameModel


class AdapterNameAdapter:
    """Is the one adapter of a stack that loads the model."""

    # literal arguments: installed adapters are listed without being imported
    declaration = AdapterDeclaration(name="adapter_name", level="model", contract="CORE_CONTRACT")

    @hookimpl
    def it_load_model(self, module: ITModule) -> nn.Module:
        """Load what ``module.it_cfg`` describes, in evaluation mode; nothing else of the module exists yet."""
        return AdapterNameModel(load_hf_model(module.it_cfg)).eval()

    @hookimpl
    def it_forward(self, module: ITModule, batch: Mapping[str, Any]) -> Tensor:
        """Logits ``[batch, pos, vocab]``; padding is masked, on either side."""
        model: Any = module.model
        name, tokens = tokens_of(batch)
        mask = mask_of(batch) if len(tokens) > 1 else batch.get("attention_mask")
        rest = {key: value for key, value in batch.items() if key not in (name, "attention_mask")}
        check_batch_keys(model.hf_model, rest)  # models of transformers ignore what they do not know
        logits: Tensor = model(tokens, torch.ones_like(tokens) if mask is None else mask, **rest)
        return logits

    @hookimpl
    def it_generate(self, module: ITModule, batch: Mapping[str, Any], generation_kwargs: Mapping[str, Any]) -> Any:
        """An object with ``sequences`` and ``logits``; generation wants its padding on the left."""
        model: Any = module.model
        tokens, mask = pad_left(tokens_of(batch)[1], mask_of(batch))
        asked = {"pad_token_id": module.require_datamodule().tokenizer.pad_token_id, **generation_kwargs}
        with torch.no_grad():
            return model.hf_model.generate(
                input_ids=tokens,
                attention_mask=mask,
                **{**asked, "return_dict_in_generate": True, "output_logits": True},
            )

    @hookimpl
    def it_create_backend(self, module: ITModule) -> AdapterNameBackend:
        """Called when an analysis first needs it; the data module, and with it the tokenizer, may not be there yet."""
        model: Any = module.model
        tokenizer = module.datamodule.tokenizer if module.datamodule is not None else None
        return backend_of_model(model, tokenizer)


adapter = AdapterNameAdapter()
