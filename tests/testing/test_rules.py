"""Rules are documented, have a test each in every suite, and say what is wrong."""

from __future__ import annotations

import functools
import gc
import itertools
import re
from pathlib import Path

import pytest
import torch

from interpretune.testing import RULES, AdapterConformance, Bench, RuleBroken, RuleSkipped
from interpretune.testing.rule import DOCUMENTATION, expect, rule
from interpretune.testing.rules.release import ROUNDS, _growth, _old_objects_aside
from tests.other_process import run_script

ROOT = Path(__file__).parents[2]


def test_every_rule_is_documented_and_every_documented_rule_exists():
    page = (ROOT / DOCUMENTATION).read_text()
    headings = re.findall(r"^### (\S+)$", page, re.MULTILINE)
    assert sorted(headings) == sorted(RULES)
    assert len(set(headings)) == len(headings)


def test_every_rule_is_a_test_of_a_suite():
    tests = {name for name in dir(AdapterConformance) if name.startswith("test_")}
    assert tests == {item.test_name for item in RULES.values()}
    for item in RULES.values():
        assert getattr(AdapterConformance, item.test_name).__doc__ == item.about
        assert item.about.endswith(".")


def test_rules_build_on_rules_that_come_before():
    order = list(RULES)
    for item in RULES.values():
        assert all(order.index(other) < order.index(item.id) for other in item.after)


IMPORTED_ANEW = """
import sys
for name in list(sys.modules):
    if name.partition(".")[0] in ("interpretune", "pytest"):
        del sys.modules[name]
sys.modules["pytest"] = None
"""


def test_the_kit_is_importable_without_pytest(tmp_path):
    code = (
        "from interpretune.testing import *; from interpretune.testing import doctor; "
        "from interpretune.cli import doctor_report; print(len(RULES))"
    )
    script = tmp_path / "imports.py"
    script.write_text(IMPORTED_ANEW + code)
    printed, _ = run_script(script)
    assert int(printed) == len(RULES)


@pytest.fixture
def made():
    """Rules of a test are no rules afterwards."""
    before = dict(RULES)
    yield
    for name in set(RULES) - set(before):
        del RULES[name]


@pytest.fixture
def bench(tmp_path):
    class Suite(AdapterConformance):
        adapter = "core"

    bench = Bench(Suite(), tmp_path)
    yield bench
    bench.close()


def test_a_broken_rule_says_what_was_seen_and_what_is_expected(made, bench):
    @rule()
    def two_legs(bench):
        """It has two legs."""
        expect(False, "it has four legs", "two")

    @rule(after=["two-legs"])
    def walks_upright(bench):
        """It walks upright."""

    with pytest.raises(RuleBroken) as caught:
        two_legs.check(bench)
    assert str(caught.value) == (
        "two-legs: it has four legs\n  expected: two\n  documented: docs/adapters/rules.md#two-legs"
    )
    with pytest.raises(RuleSkipped, match="it builds on the rule two-legs, which is not kept"):
        walks_upright.check(bench)


def test_whatever_an_adapter_raises_is_a_failure_with_its_cause(made, bench):
    @rule()
    def does_not_fall(bench):
        """It does not fall."""
        raise SystemExit("it fell")

    with pytest.raises(RuleBroken, match="SystemExit: it fell") as caught:
        does_not_fall.check(bench)
    assert isinstance(caught.value.__cause__, SystemExit)


def test_rules_skip_what_they_are_not_about(made, bench):
    @rule(levels=["latents"])
    def of_latents(bench):
        """Only for latents."""

    @rule(capabilities=["telepathy"])
    def of_minds(bench):
        """Only for some backends."""

    with pytest.raises(RuleSkipped, match="only for adapters of the level latents; this is framework"):
        of_latents.check(bench)
    with pytest.raises(RuleSkipped, match="the backend does not offer telepathy"):
        of_minds.check(bench)


def test_a_rule_cannot_build_on_one_that_comes_later(made):
    with pytest.raises(ValueError, match="builds on one that is not checked before"):
        rule(after=["a-rule-of-the-future"])(len)


def test_bounded_caches_of_tensors_are_let_go():
    """Full ones keep as many as before; without a bound there are more with each batch."""
    count = itertools.count()
    bounded, unbounded = (functools.lru_cache(maxsize=size)(lambda n: torch.tensor(float(n))) for size in (16, None))
    with _old_objects_aside():
        assert _growth({"a forward": lambda _: bounded(next(count))}) < ROUNDS
        assert _growth({"a forward": lambda _: unbounded(next(count))}) == ROUNDS


def test_what_was_kept_from_the_collector_before_stays_so():
    count = gc.get_freeze_count()  # once all tests are collected
    with _old_objects_aside():
        pass
    assert gc.get_freeze_count() >= count > 0
