from .conformance import AdapterConformance
from .reference_latents import ReferenceLatents
from .rule import Rule, RuleBroken, RuleSkipped
from .rules import RULES
from .tiny_models import nli_rows, save_tiny_model, write_rows
from .workbench import Bench

__all__ = [
    "RULES",
    "AdapterConformance",
    "Bench",
    "ReferenceLatents",
    "Rule",
    "RuleBroken",
    "RuleSkipped",
    "nli_rows",
    "save_tiny_model",
    "write_rows",
]
