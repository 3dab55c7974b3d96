from .all_rules import RULES
from .bench import Bench
from .conformance import AdapterConformance
from .rule import Rule, RuleBroken, RuleSkipped

__all__ = ["RULES", "AdapterConformance", "Bench", "Rule", "RuleBroken", "RuleSkipped"]
