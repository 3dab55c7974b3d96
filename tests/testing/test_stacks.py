"""Stacks of several adapters keep the rules that concern stacks."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import interpretune as it
from interpretune.plugins.declaration import Level
from interpretune.testing import RULES, AdapterConformance
from interpretune.testing.conformance import suite_of
from interpretune.testing.doctor import FAILED, PASSED, check_suite
from tests.testing.where_adapters_meet import WHERE_ADAPTERS_MEET

KNOWN = ("huggingface", "lightning", "nnsight", "sae_lens", "transformer_lens")
INSTALLED = {name: item.read_declaration() for name, item in it.installed_adapters().items() if name in KNOWN}
GROUPS = [names for size in (2, 3) for names in combinations(INSTALLED, size)]


def models_in(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if INSTALLED[name].level is Level.model]


def allowed(groups: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Those with one adapter at most that loads the model."""
    return [names for names in groups if len(models_in(names)) < 2]


def largest(groups: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Those that are no part of another: what goes wrong between two adapters does so with a third beside them."""
    return [names for names in groups if not any(set(names) < set(other) for other in groups)]


@pytest.mark.parametrize("names", largest(allowed(GROUPS)), ids="-".join)
def test_what_may_stack_keeps_the_rules_of_stacks(names: tuple[str, ...], tmp_path) -> None:
    check_stack(names, tmp_path)


def check_stack(names: tuple[str, ...], folder: Path) -> None:
    """Check the rules of stacks on a stack.

    Args:
        names: Of its adapters.
        folder: For what the kit writes.
    """
    first = next((name for name in names if INSTALLED[name].level is Level.framework), names[0])

    class Together(AdapterConformance):
        adapter = first
        stack = names

        def module_settings(self) -> dict[str, Any]:
            suites = [suite_of(name) for name in names]
            for suite in suites:
                suite.folder = self.folder
            return {key: value for suite in suites for key, value in suite.module_settings().items()}

    verdicts = list(check_suite(Together(), folder / "bench", [RULES[name] for name in WHERE_ADAPTERS_MEET]))
    assert [verdict.message for verdict in verdicts if verdict.outcome == FAILED] == []
    assert sum(verdict.outcome == PASSED for verdict in verdicts) > 20


@pytest.mark.parametrize("names", [names for names in GROUPS if len(models_in(names)) > 1], ids="-".join)
def test_two_that_load_the_model_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(it.StackError, match="both implement it_load_model") as caught:
        it.build_context(names)
    assert sum(f"'{name}'" in str(caught.value) for name in models_in(names)) > 1
