from interpretune.operations.definition import SOURCES as SOURCES, Operation as Operation, operation as operation
from interpretune.operations.execution import PlanRun as PlanRun, run_plan as run_plan, run_summaries as run_summaries
from interpretune.operations.loading import find_operation as find_operation, load_operations as load_operations
from interpretune.operations.measure import AnswerReader as AnswerReader
from interpretune.operations.plan import Plan as Plan
from interpretune.store.fields import Field as Field, Per as Per

from . import latent_analyses as latent_analyses, lenses as lenses
