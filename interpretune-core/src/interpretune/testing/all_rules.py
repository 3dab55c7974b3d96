"""Every rule, in the order in which they are checked."""

from interpretune.testing import (  # isort: skip - the order of the imports is that of the rules
    declaration_rules,
    stacking_rules,
    life_cycle_rules,
    isolation_rules,
    pickling_rules,
    step_rules,
    padding_rules,
    hook_point_rules,
    splicing_rules,
    ablation_rules,
    intervention_rules,
)
from interpretune.testing.rule import RULES

__all__ = [
    "RULES",
    "ablation_rules",
    "declaration_rules",
    "hook_point_rules",
    "intervention_rules",
    "isolation_rules",
    "life_cycle_rules",
    "padding_rules",
    "pickling_rules",
    "splicing_rules",
    "stacking_rules",
    "step_rules",
]
