"""Nothing is wrong with this one: the others are this adapter with one thing changed."""

import torch

import interpretune as it
from interpretune.analysis import HuggingFaceBackend
from interpretune.models.padding import mask_of, pad_left, position_ids, tokens_of


class SoundBackend(HuggingFaceBackend):
    """The backend of torch hooks."""


class SoundAdapter:
    declaration = it.AdapterDeclaration(name="acme", level="model", contract="1.0")
    backend = SoundBackend

    @it.hookimpl
    def it_load_model(self, module):
        return it.load_hf_model(module.it_cfg)

    @it.hookimpl
    def it_forward(self, module, batch):
        return self.forward(module, batch)

    def forward(self, module, batch):
        tokens = tokens_of(batch)[1]
        mask = mask_of(batch) if len(tokens) > 1 else batch.get("attention_mask", torch.ones_like(tokens))
        return module.model(input_ids=tokens, attention_mask=mask, position_ids=position_ids(mask), use_cache=False)

    @it.hookimpl
    def it_generate(self, module, batch, generation_kwargs):
        return self.generate(module, *pad_left(tokens_of(batch)[1], mask_of(batch)), generation_kwargs)

    def generate(self, module, tokens, mask, generation_kwargs):
        wanted = {"return_dict_in_generate": True, "output_logits": True}
        pad = module.require_datamodule().tokenizer.pad_token_id
        with torch.no_grad():
            return module.model.generate(
                input_ids=tokens, attention_mask=mask, pad_token_id=pad, **generation_kwargs, **wanted
            )

    @it.hookimpl
    def it_create_backend(self, module):
        tokenizer = module.datamodule.tokenizer if module.datamodule is not None else None
        return self.backend(module.model, tokenizer)


adapter = SoundAdapter()
