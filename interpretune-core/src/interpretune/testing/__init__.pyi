from .bench import Bench
from .conformance import AdapterConformance
from .reference_latents import ReferenceLatents
from .rule import Rule, RuleBroken, RuleSkipped
from .rules import RULES

__all__ = ["RULES", "AdapterConformance", "Bench", "ReferenceLatents", "Rule", "RuleBroken", "RuleSkipped"]
