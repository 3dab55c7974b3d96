from interpretune.testing.conformance import AdapterConformance as AdapterConformance
from interpretune.testing.reference import (
    ablated_logits as ablated_logits,
    activations_of as activations_of,
    logits_of as logits_of,
    spliced_run as spliced_run,
)
from interpretune.testing.reference_latents import ReferenceLatents as ReferenceLatents
from interpretune.testing.rule import Rule as Rule, RuleBroken as RuleBroken, RuleSkipped as RuleSkipped
from interpretune.testing.rules import RULES as RULES
from interpretune.testing.tiny_latents import RandomDictionary as RandomDictionary
from interpretune.testing.tiny_models import (
    nli_rows as nli_rows,
    save_tiny_model as save_tiny_model,
    tiny_gpt2 as tiny_gpt2,
    tiny_llama as tiny_llama,
    tiny_tokenizer as tiny_tokenizer,
    write_rows as write_rows,
)
from interpretune.testing.workbench import Bench as Bench
