"""The adapter keeps every rule of the contract, and does what it is for."""

import interpretune as it
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interpretune_adaptername.backend import AdapterNameBackend
from interpretune_adaptername.conformance import AdapterNameConformance
from interpretune_adaptername.model import AdapterNameModel


class TestAdapterName(AdapterNameConformance):
    def test_logits_are_those_of_the_plain_model(self, conformance_bench):
        module = conformance_bench.module
        assert isinstance(module.model, AdapterNameModel)
        assert isinstance(module.backend, AdapterNameBackend)
        plain = AutoModelForCausalLM.from_pretrained(conformance_bench.model_folder).eval()
        tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
        with torch.no_grad():
            logits = module(input_ids=tokens, attention_mask=torch.ones_like(tokens))
            torch.testing.assert_close(logits, plain(tokens).logits)

    def test_a_model_in_memory_needs_no_session(self, conformance_bench):
        plain = AutoModelForCausalLM.from_pretrained(conformance_bench.model_folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(conformance_bench.model_folder)
        asked = {"answers": (" house", " tree"), "correct": 0, "units": it.Heads(1)}
        found, expected = (
            it.effects(model, tokenizer, ["Ada sees the red dog near the"], **asked).to_pandas()
            for model in (AdapterNameModel(plain), plain)
        )
        assert len(found) > 0
        assert found.effect.tolist() == expected.effect.tolist()
