from .bench import Bench
from .conformance import AdapterConformance
from .rule import RULES, Rule, RuleBroken, RuleSkipped

__all__ = ["RULES", "AdapterConformance", "Bench", "Rule", "RuleBroken", "RuleSkipped"]
