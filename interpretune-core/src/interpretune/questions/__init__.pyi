from interpretune.backends.finding import backend_of as backend_of
from interpretune.operations.objectives import (
    KL as KL,
    LogitDiff as LogitDiff,
    LogProb as LogProb,
    Loss as Loss,
    Objective as Objective,
    Outcome as Outcome,
    OwnObjective as OwnObjective,
    Prob as Prob,
)
from interpretune.questions.encoding import EncodedRow as EncodedRow, encode as encode
from interpretune.questions.generation_trace import (
    GeneratedToken as GeneratedToken,
    GenerationTrace as GenerationTrace,
    trace_generation as trace_generation,
)
from interpretune.questions.layers import LogitLens as LogitLens
from interpretune.questions.lenses import direct_logit_attribution as direct_logit_attribution, logit_lens as logit_lens
from interpretune.questions.one_call import effects as effects
from interpretune.questions.prompt_row import PromptRow as PromptRow
from interpretune.questions.result import Effects as Effects
from interpretune.questions.sources import read_rows as read_rows
from interpretune.questions.units import (
    Heads as Heads,
    Latents as Latents,
    Neurons as Neurons,
    Units as Units,
    UnitSet as UnitSet,
    Vector as Vector,
)
