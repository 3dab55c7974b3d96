"""What a conversion into a hooked transformer would lose is refused; names of its parameters are its own."""

from __future__ import annotations

import copy

import pytest

from interpretune import ModelLoadError
from interpretune_tlens import ITLensFromPretrainedNoProcessingConfig
from tests.tiny import tiny_gpt2
from tests.tlens.test_training import pytestmark, trainable_session, with_lora

__all__ = ["pytestmark"]


def test_what_a_conversion_would_lose_is_refused(tmp_path):
    hooked = ITLensFromPretrainedNoProcessingConfig(use_bridge=False)
    adapted = with_lora(tiny_gpt2(), "c_proj")
    for model in (adapted, adapted.get_base_model()):
        with pytest.raises(ModelLoadError, match=r"adapters \(LoRA or similar\).*would lose. Use use_bridge=True"):
            trainable_session(tmp_path, hf_model=copy.deepcopy(model), tl_cfg=hooked)
    quantized = tiny_gpt2()
    quantized.is_quantized = True
    with pytest.raises(ModelLoadError, match=r"quantized weights, which.*Use use_bridge=True"):
        trainable_session(tmp_path, hf_model=quantized, tl_cfg=hooked)


def test_names_of_a_hooked_transformer_are_its_own(tmp_path):
    module = trainable_session(tmp_path, "llama", "hooked")["module"]
    names = module.hook.it_name_parameters(module=module)[0]
    assert names["blocks.1.attn.W_K"] == ("model.blocks.1.attn._W_K",)  # heads share keys
    assert names["unembed.W_U"] == ("model.unembed.W_U",)
    assert {real for reals in names.values() for real in reals} == {name for name, _ in module.named_parameters()}
