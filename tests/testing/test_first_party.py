"""The adapters of this repository keep the rules of the kit; ``make kit`` checks every rule on every one of them.

Rules that take seconds are left out where the same code keeps them in another suite: the bridge below SAELens, core's
model below the example ``hello``. Of core see that example too, and the test of ``interpretune doctor``; of
``huggingface``, which shares all but the loading of the model with core, the tests of stacks. Imports of all are looked
at in one process, in ``tests/broken_adapters/test_imports.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from interpretune.testing import RULES
from tests.broken_adapters.checking import IMPORT_RULES

lightning = pytest.importorskip("interpretune_lightning.conformance")
saelens = pytest.importorskip("interpretune_saelens.conformance")
tlens = pytest.importorskip("interpretune_tlens.conformance")


OF_GENERATION = ("generation-ends-at-eos", "sampling-follows-its-options", "sampling-follows-the-seed")
OF_RUNS = (
    *("analysis-keeps-grad-mode", "analysis-keeps-train-mode", "analyses-agree", "runner-finds-its-stores"),
    *("sessions-are-let-go", "released-after-a-failure", "errors-arrive", "nothing-stale-after-a-step"),
    *OF_GENERATION,
)
OF_EDITS = (
    *("layers-of-two-digits", "larger-batches-agree", "nested-edits-add-up", "gradients-at-every-hook-point"),
    *("logits-in-the-models-dtype", "edits-in-the-models-dtype", "positions-count-real-tokens"),
)
OF_BACKENDS = ("layers-of-two-digits", "larger-batches-agree", "nested-edits-add-up")
OF_MEMORY = ("threads-stay-apart", "batches-are-let-go", "runner-agrees", "wrappers-see-every-batch")
OF_MODELS = (*OF_EDITS, *OF_GENERATION, "threads-stay-apart", "edits-in-train-mode", "analyses-agree")
OF_STACKS = ("errors-arrive", "released-after-a-failure", "runner-agrees", "wrappers-see-every-batch")
OF_LATENTS = tuple(
    name
    for name, rule in RULES.items()
    if rule.function.__module__.rpartition(".")[2] in ("splicing", "padded_analysis") and name != "no-hooks-left"
)
OF_FORWARDS = (
    *("padding-forward", "padding-generation", "padding-backend", "edits-in-train-mode", "edits-are-made"),
    *("edits-do-not-reach-back", "own-names-edit-what-they-read", "dtype-follows", "results-on-the-device"),
)


def without(*rules: str) -> Callable[[type], type]:
    """Leave rules out of a suite."""

    def leave_out(suite: type) -> type:
        for name in rules:
            setattr(suite, RULES[name].test_name, None)
        return suite

    return leave_out


@without(*IMPORT_RULES, *OF_RUNS, *OF_EDITS, *OF_MEMORY, *OF_LATENTS, *OF_FORWARDS)
class TestBridge(tlens.TransformerLensConformance):
    """SAELens stands on it, with its forward, generation and backend: the suite below keeps what is left out here."""


@without(*IMPORT_RULES, *OF_RUNS, *OF_BACKENDS, *OF_MEMORY)
class TestHooked(tlens.HookedTransformerConformance):
    """The adapter and its backend are those of the bridge, with another class of model."""


@without(*IMPORT_RULES, *OF_STACKS, "analysis-keeps-grad-mode")
class TestSAELens(saelens.SAELensConformance):
    """The tests of stacks keep what is left out here."""


@without(*IMPORT_RULES, *OF_STACKS, *OF_MODELS, *OF_LATENTS)
class TestLightning(lightning.LightningConformance):
    """The model, its forward and its backend are core's, on which ``hello`` keeps what is left out here."""
