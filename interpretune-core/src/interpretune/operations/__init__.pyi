from interpretune.operations.definition import SOURCES, Operation, operation
from interpretune.operations.execution import PlanRun, run_plan, run_summaries
from interpretune.operations.loading import find_operation, load_operations, offered_operations
from interpretune.operations.plan import Plan
from interpretune.store.fields import Field, Per

from . import latent_analyses, lenses

__all__ = [
    "SOURCES",
    "Field",
    "Operation",
    "Per",
    "Plan",
    "PlanRun",
    "find_operation",
    "latent_analyses",
    "lenses",
    "load_operations",
    "offered_operations",
    "operation",
    "run_plan",
    "run_summaries",
]
