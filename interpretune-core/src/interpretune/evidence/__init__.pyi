from interpretune.evidence.facts import (
    ActiveTokens as ActiveTokens,
    Card as Card,
    Change as Change,
    ChangedRow as ChangedRow,
    Continuation as Continuation,
    Dose as Dose,
    HeldOut as HeldOut,
    PromptTokens as PromptTokens,
    ShadedPrompt as ShadedPrompt,
    TokenEffect as TokenEffect,
)
from interpretune.evidence.gathering import evidence_of as evidence_of
from interpretune.evidence.stored import Evidence as Evidence
