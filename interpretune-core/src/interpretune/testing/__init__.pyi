from .bench import Bench
from .conformance import AdapterConformance
from .rule import Rule, RuleBroken, RuleSkipped
from .rules import RULES

__all__ = ["RULES", "AdapterConformance", "Bench", "Rule", "RuleBroken", "RuleSkipped"]
