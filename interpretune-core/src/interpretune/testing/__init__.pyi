from interpretune.testing.conformance import AdapterConformance
from interpretune.testing.reference import ablated_logits, activations_of, logits_of, spliced_run
from interpretune.testing.reference_latents import ReferenceLatents
from interpretune.testing.rule import Rule, RuleBroken, RuleSkipped
from interpretune.testing.rules import RULES
from interpretune.testing.tiny_latents import RandomDictionary
from interpretune.testing.tiny_models import (
    nli_rows,
    save_tiny_model,
    tiny_gpt2,
    tiny_llama,
    tiny_tokenizer,
    write_rows,
)
from interpretune.testing.workbench import Bench

__all__ = [
    "RULES",
    "AdapterConformance",
    "Bench",
    "RandomDictionary",
    "ReferenceLatents",
    "Rule",
    "RuleBroken",
    "RuleSkipped",
    "ablated_logits",
    "activations_of",
    "logits_of",
    "nli_rows",
    "save_tiny_model",
    "spliced_run",
    "tiny_gpt2",
    "tiny_llama",
    "tiny_tokenizer",
    "write_rows",
]
