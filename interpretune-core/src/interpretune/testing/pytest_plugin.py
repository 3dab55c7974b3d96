"""Runs the suites of adapters under pytest; core registers it under the entry-point group ``pytest11``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from interpretune.testing import environment  # noqa: F401 - notes the environment before adapters are imported

if TYPE_CHECKING:
    from interpretune.testing.rule import Rule
    from interpretune.testing.workbench import Bench

HIDDEN = "interpretune-rule-not-checked"
"""Property of a test whose rule builds on a broken one: the suite, the rule, and the broken rules."""


@pytest.fixture(scope="class")
def conformance_bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The workbench of one suite; its tests share a session."""
    from interpretune.testing.workbench import Bench

    bench = Bench(request.cls(), tmp_path_factory.mktemp(f"conformance-{request.cls.adapter}"))
    yield bench
    bench.close()


@pytest.fixture
def check_rule(conformance_bench: Bench, request: pytest.FixtureRequest) -> Callable[[Rule], None]:
    """Checks a rule; one that does not apply, or that builds on a broken one, skips the test."""
    from interpretune.testing.global_state import globals_restored
    from interpretune.testing.rule import RuleHidden, RuleSkipped

    def check(rule: Rule) -> None:
        try:
            with globals_restored():
                rule.check(conformance_bench)
        except RuleSkipped as skipped:
            if isinstance(skipped, RuleHidden):
                told = (request.cls.__name__, rule.id, *skipped.because)
                request.node.user_properties.append((HIDDEN, told))
            pytest.skip(str(skipped))

    return check


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which rules were not checked because of a broken one, so that nobody takes skipped tests for the rest."""
    hidden: dict[tuple[str, str], list[str]] = {}
    for report in terminalreporter.stats.get("skipped", ()):
        for name, told in getattr(report, "user_properties", ()):
            if name == HIDDEN:
                suite, rule, *because = told
                for broken in because:
                    hidden.setdefault((suite, broken), []).append(rule)
    if hidden:
        terminalreporter.section("rules that were not checked")
    for (suite, broken), rules in hidden.items():
        terminalreporter.write_line(
            f"{suite}: not checked, as they build on {broken} ({len(rules)}): {', '.join(rules)}"
        )
