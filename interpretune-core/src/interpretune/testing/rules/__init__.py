"""The rules, a file for each subject; imported in the order in which they are checked."""

from interpretune.testing.rules import (  # noqa: F401  # isort: skip - the order of the imports is that of the rules
    declaration,
    offers,
    importing,
    stacking,
    sessions,
    step,
    padding,
    generation,
    activations,
    unembedding,
    gradient_flow,
    train_mode,
    many_layers,
    splicing,
    padded_analysis,
    larger_batch,
    analysis,
    runner,
    analysis_modes,
    device,
    stale,
    latents,
    loops,
    contributions,
    release,
    threads,
    session_end,
)
from interpretune.testing.rule import RULES

__all__ = ["RULES"]
