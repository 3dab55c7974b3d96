from interpretune.backends.finding import backend_of
from interpretune.operations.objectives import KL, LogitDiff, LogProb, Loss, Objective, Outcome, OwnObjective, Prob
from interpretune.questions.encoding import EncodedRow, encode
from interpretune.questions.layers import LogitLens
from interpretune.questions.lenses import direct_logit_attribution, logit_lens
from interpretune.questions.one_call import effects
from interpretune.questions.prompt_row import PromptRow
from interpretune.questions.result import Effects
from interpretune.questions.sources import read_rows
from interpretune.questions.units import Heads, Latents, Neurons, Units, UnitSet, Vector

__all__ = [
    "KL",
    "Effects",
    "EncodedRow",
    "Heads",
    "Latents",
    "LogProb",
    "LogitDiff",
    "LogitLens",
    "Loss",
    "Neurons",
    "Objective",
    "Outcome",
    "OwnObjective",
    "Prob",
    "PromptRow",
    "UnitSet",
    "Units",
    "Vector",
    "backend_of",
    "direct_logit_attribution",
    "effects",
    "encode",
    "logit_lens",
    "read_rows",
]
