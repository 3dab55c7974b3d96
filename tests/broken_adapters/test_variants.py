"""A bug is found in other forms too: a rule is about what goes wrong, not about how it was once written."""

from __future__ import annotations

import warnings

import pytest

from interpretune.testing import RULES
from interpretune.testing.doctor import FAILED, PASSED
from tests.broken_adapters.checking import verdicts_on
from tests.broken_adapters.expected_of_runs import FIRST_VARIANTS, FOUND_IN_RUNS, IMPORTS, VARIANTS, variants

SOUND_FRAMEWORK = "misbehaving.sound_framework"


@pytest.fixture(autouse=True)
def warnings_are_no_errors():
    """A wrong adapter may well warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("variant", FIRST_VARIANTS)
def test_another_form_of_a_bug_breaks_its_rule(variant):
    check_variant(variant)


def check_variant(variant: str) -> None:
    """Fail unless a variant breaks the rule of its bug, with the expected words."""
    rule, *words = VARIANTS[variant]
    (verdict,) = verdicts_on(f"variants.{variant}", [RULES[rule]])
    assert verdict.outcome == FAILED
    for word in words:
        assert word in verdict.message


def test_a_sound_framework_keeps_the_rules_of_loops():
    names = {rule for rule, *_ in FOUND_IN_RUNS.values() if rule.startswith(("loop", "validation", "checkpoints"))}
    verdicts = verdicts_on(SOUND_FRAMEWORK, [RULES[name] for name in RULES if name in names])
    assert [(item.rule.id, item.message) for item in verdicts if item.outcome != PASSED] == []


def test_every_bug_has_another_form():
    assert variants() == {*VARIANTS, *IMPORTS}
    assert {rule for rule, *_ in FOUND_IN_RUNS.values()} <= {rule for rule, *_ in VARIANTS.values()}
