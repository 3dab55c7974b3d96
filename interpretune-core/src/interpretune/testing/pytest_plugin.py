"""Runs the suites of adapters under pytest; core registers it under the entry-point group ``pytest11``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from interpretune.testing.bench import Bench
    from interpretune.testing.rule import Rule


@pytest.fixture(scope="class")
def conformance_bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The workbench of one suite; its tests share a session."""
    from interpretune.testing.bench import Bench

    bench = Bench(request.cls(), tmp_path_factory.mktemp(f"conformance-{request.cls.adapter}"))
    yield bench
    bench.close()


@pytest.fixture
def check_rule(conformance_bench: Bench) -> Callable[[Rule], None]:
    """Checks a rule; one that does not apply skips the test."""
    from interpretune.testing.global_state import globals_restored
    from interpretune.testing.rule import RuleSkipped

    def check(rule: Rule) -> None:
        try:
            with globals_restored():
                rule.check(conformance_bench)
        except RuleSkipped as skipped:
            pytest.skip(str(skipped))

    return check
