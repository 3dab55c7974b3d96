"""Every rule, in the order in which they are checked."""

from interpretune.testing import (
    declaration_rules,
)
from interpretune.testing.rule import RULES

__all__ = ["RULES", "declaration_rules"]
