"""Every rule, in the order in which they are checked."""

from interpretune.testing import (  # isort: skip - the order of the imports is that of the rules
    declaration_rules,
    import_rules,
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
    analysis_rules,
    device_rules,
    latents_rules,
    loop_rules,
    contribution_rules,
)
from interpretune.testing.rule import RULES

__all__ = [
    "RULES",
    "ablation_rules",
    "analysis_rules",
    "contribution_rules",
    "declaration_rules",
    "device_rules",
    "hook_point_rules",
    "import_rules",
    "intervention_rules",
    "isolation_rules",
    "latents_rules",
    "life_cycle_rules",
    "loop_rules",
    "padding_rules",
    "pickling_rules",
    "splicing_rules",
    "stacking_rules",
    "step_rules",
]
