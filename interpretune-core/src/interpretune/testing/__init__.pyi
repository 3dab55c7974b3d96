from .conformance import AdapterConformance
from .reference_latents import ReferenceLatents
from .rule import Rule, RuleBroken, RuleSkipped
from .rules import RULES
from .workbench import Bench

__all__ = ["RULES", "AdapterConformance", "Bench", "ReferenceLatents", "Rule", "RuleBroken", "RuleSkipped"]
