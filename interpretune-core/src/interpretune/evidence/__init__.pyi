from interpretune.evidence.facts import (
    Card,
    Change,
    ChangedRow,
    Continuation,
    Dose,
    HeldOut,
    ShadedPrompt,
    TokenEffect,
)

__all__ = ["Card", "Change", "ChangedRow", "Continuation", "Dose", "HeldOut", "ShadedPrompt", "TokenEffect"]
