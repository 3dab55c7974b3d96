from .execution import PlanRun, run_plan, run_summaries
from .mode_plans import operations_of, plan_of
from .operation import SOURCES, Operation, operation
from .plan import Plan

__all__ = [
    "SOURCES",
    "Operation",
    "Plan",
    "PlanRun",
    "operation",
    "operations_of",
    "plan_of",
    "run_plan",
    "run_summaries",
]
