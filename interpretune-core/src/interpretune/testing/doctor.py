"""Checks installed adapters outside of pytest: ``interpretune doctor``."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from interpretune.discovery import find_adapter, registered_adapters
from interpretune.testing.bench import Bench
from interpretune.testing.conformance import AdapterConformance
from interpretune.testing.global_state import globals_restored
from interpretune.testing.rule import RULES, Rule, RuleBroken, RuleSkipped
from interpretune.testing.suites import suite_of

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@frozen
class Verdict:
    """What came of checking one rule.

    Attributes:
        rule: The rule.
        outcome: ``passed``, ``failed`` or ``skipped``.
        message: What was seen and expected, or why the rule was skipped.
        seconds: How long it took.
    """

    rule: Rule
    outcome: str
    message: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rule": self.rule.id,
            "about": self.rule.about,
            "verdict": self.outcome,
            "message": self.message,
            "documented": self.rule.documented,
            "seconds": round(self.seconds, 3),
        }


@frozen
class Diagnosis:
    """The verdicts on one adapter.

    Attributes:
        adapter: Its name.
        distribution: Its distribution and version.
        verdicts: One for each rule, in order.
    """

    adapter: str
    distribution: str
    verdicts: Sequence[Verdict]

    @property
    def failures(self) -> list[Verdict]:
        """The rules that it breaks."""
        return [item for item in self.verdicts if item.outcome == FAILED]

    @property
    def seconds(self) -> float:
        """How long all checks took."""
        return sum(item.seconds for item in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "adapter": self.adapter,
            "distribution": self.distribution,
            "failed": len(self.failures),
            "seconds": round(self.seconds, 3),
            "verdicts": [item.as_dict() for item in self.verdicts],
        }


def adapters_to_check(adapter: str | None = None) -> list[str]:
    """Names of the installed adapters, or the given one.

    Raises:
        UnknownAdapterError: No distribution registers it; the message lists those that there are.
    """
    names = sorted({item.name for item in registered_adapters()})
    if adapter is None:
        return names
    if adapter not in names:
        find_adapter(adapter)
    return [adapter]


def diagnose(adapter: str, report: Callable[[Verdict], None] = lambda verdict: None) -> Diagnosis:
    """Check every rule on one adapter; whatever is wrong with it becomes a verdict.

    Args:
        adapter: Its name.
        report: Gets each verdict as it is there.
    """
    with tempfile.TemporaryDirectory(prefix="interpretune-doctor-") as folder:
        verdicts = []
        for verdict in check_suite(suite_of(adapter), Path(folder)):
            report(verdict)
            verdicts.append(verdict)
    return Diagnosis(adapter, _distributions(adapter), verdicts)


def check_suite(suite: AdapterConformance, folder: Path, rules: Iterable[Rule] | None = None) -> Iterator[Verdict]:
    """Check rules on the adapter of a suite; the rest of the process is left as it was.

    Args:
        suite: What the adapter's author says of it.
        folder: Where models and data are written.
        rules: The rules; None: all.
    """
    bench = Bench(suite, folder)
    with globals_restored():
        for rule in RULES.values() if rules is None else rules:
            yield check_rule(rule, bench)
        with contextlib.redirect_stdout(sys.stderr):
            _close(bench)


def _close(bench: Bench) -> None:
    """The rule ``sessions-end`` is about what goes wrong here; where it is not checked, a note must do."""
    try:
        bench.close()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - an adapter may raise anything; the others go on
        print(f"  the sessions of {bench.adapter} do not end: {type(error).__name__}: {error}")


def check_rule(rule: Rule, bench: Bench) -> Verdict:
    """Check one rule; what adapters print goes to standard error."""
    start = time.perf_counter()
    outcome, message = PASSED, ""
    try:
        with globals_restored(), contextlib.redirect_stdout(sys.stderr):
            rule.check(bench)
    except RuleBroken as broken:
        outcome, message = FAILED, str(broken)
    except RuleSkipped as skipped:
        outcome, message = SKIPPED, str(skipped)
    return Verdict(rule, outcome, message, time.perf_counter() - start)


def _distributions(adapter: str) -> str:
    return ", ".join(sorted({f"{x.distribution} {x.version}" for x in registered_adapters() if x.name == adapter}))
