"""Every pair and triple of the installed adapters that their declarations allow keeps the rules that concern stacks."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

import interpretune as it
from interpretune.plugins.declaration import Level
from interpretune.testing import RULES, AdapterConformance
from interpretune.testing.conformance import suite_of
from interpretune.testing.doctor import FAILED, PASSED, check_suite

KNOWN = ("huggingface", "lightning", "nnsight", "sae_lens", "transformer_lens")
INSTALLED = {name: item.read_declaration() for name, item in it.installed_adapters().items() if name in KNOWN}
GROUPS = [names for size in (2, 3) for names in combinations(INSTALLED, size)]
WHERE_ADAPTERS_MEET = (
    *(
        "session-runs",
        "life-cycle-in-order",
        "users-classes-unmodified",
        "sessions-stay-apart",
        "configurations-pickle",
    ),
    *("names-of-parameters", "operations-and-sections", "errors-arrive", "released-after-a-failure", "results-arrive"),
    *("state-loads", "deterministic", "forward-agrees", "generation-agrees", "padding-forward", "cache-agrees"),
    *(
        "edits-are-made",
        "no-hooks-left",
        "splicing-agrees",
        "gradients-agree",
        "ablation-agrees",
        "interventions-agree",
    ),
    *("loops-evaluate", "loop-trains", "checkpoints-are-loaded", "wrappers-see-every-batch", "runner-agrees"),
    *("interventions-agree", "configurations-pickle", "sessions-end"),
)
"""Each adapter's own suite has the others, which take longer than these together."""
STACK_RULES = [rule for rule in RULES.values() if rule.id in WHERE_ADAPTERS_MEET]


def models_in(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if INSTALLED[name].level is Level.model]


@pytest.mark.parametrize("names", [names for names in GROUPS if len(models_in(names)) < 2], ids="-".join)
def test_what_may_stack_keeps_the_rules_of_stacks(names: tuple[str, ...], tmp_path) -> None:
    first = next((name for name in names if INSTALLED[name].level is Level.framework), names[0])

    class Together(AdapterConformance):
        adapter = first
        stack = names

        def module_settings(self) -> dict[str, Any]:
            suites = [suite_of(name) for name in names]
            for suite in suites:
                suite.folder = self.folder
            return {key: value for suite in suites for key, value in suite.module_settings().items()}

    verdicts = list(check_suite(Together(), tmp_path / "bench", STACK_RULES))
    assert [verdict.message for verdict in verdicts if verdict.outcome == FAILED] == []
    assert sum(verdict.outcome == PASSED for verdict in verdicts) > 20


@pytest.mark.parametrize("names", [names for names in GROUPS if len(models_in(names)) > 1], ids="-".join)
def test_two_that_load_the_model_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(it.StackError, match="both implement it_load_model") as caught:
        it.build_context(names)
    assert sum(f"'{name}'" in str(caught.value) for name in models_in(names)) > 1
