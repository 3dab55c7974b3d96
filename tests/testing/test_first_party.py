"""The adapters of this repository keep the rules of the kit; ``make kit`` checks every rule on every one of them.

Rules that take seconds are left out where the same code keeps them in another suite: the bridge below SAELens, core's
model below the example ``hello``. Of core see that example too, and the test of ``interpretune doctor``; of
``huggingface``, which shares all but the loading of the model with core, the tests of stacks.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from interpretune.testing import RULES

lightning = pytest.importorskip("interpretune_lightning.conformance")
saelens = pytest.importorskip("interpretune_saelens.conformance")
tlens = pytest.importorskip("interpretune_tlens.conformance")


OF_IMPORTS = ("import-is-cheap", "import-patches-nothing", "import-changes-nothing")  # share a process
OF_RUNS = (
    *("analysis-keeps-grad-mode", "analysis-keeps-train-mode", "analyses-agree", "runner-finds-its-stores"),
    *("sessions-are-let-go", "released-after-a-failure", "errors-arrive", "nothing-stale-after-a-step"),
    *("generation-ends-at-eos", "sampling-follows-its-options", "sampling-follows-the-seed"),
)
OF_EDITS = (
    *("layers-of-two-digits", "larger-batches-agree", "nested-edits-add-up", "gradients-at-every-hook-point"),
    *("logits-in-the-models-dtype", "edits-in-the-models-dtype", "positions-count-real-tokens"),
)


def without(*rules: str) -> Callable[[type], type]:
    """Leave rules out of a suite."""

    def leave_out(suite: type) -> type:
        for name in rules:
            setattr(suite, RULES[name].test_name, None)
        return suite

    return leave_out


@without(*OF_RUNS, *OF_EDITS, "threads-stay-apart", "batches-are-let-go", "runner-agrees", "edits-in-train-mode")
class TestBridge(tlens.TransformerLensConformance):
    """SAELens stands on it: the suite below keeps what is left out here."""


@without(*OF_IMPORTS, *OF_RUNS)
class TestHooked(tlens.HookedTransformerConformance):
    """The adapter is that of the bridge, with another class of model."""


class TestSAELens(saelens.SAELensConformance):
    pass


@without(*OF_EDITS)
class TestLightning(lightning.LightningConformance):
    """The model is core's."""
