from . import latent_analyses
from .execution import PlanRun, run_plan, run_summaries
from .loading import find_operation, load_operations, offered_operations
from .operation import SOURCES, Operation, operation
from .plan import Plan

__all__ = [
    "SOURCES",
    "Operation",
    "Plan",
    "PlanRun",
    "find_operation",
    "latent_analyses",
    "load_operations",
    "offered_operations",
    "operation",
    "run_plan",
    "run_summaries",
]
