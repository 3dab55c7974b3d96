"""Checks installed adapters outside of pytest: ``interpretune doctor``."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attrs import frozen

from interpretune.errors import ConfigurationError
from interpretune.plugins.discovery import find_adapter, registered_adapters
from interpretune.testing.conformance import AdapterConformance, suite_of
from interpretune.testing.global_state import globals_restored
from interpretune.testing.rule import DOCUMENTATION, RULES, Rule, RuleBroken, RuleHidden, RuleSkipped
from interpretune.testing.workbench import Bench

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
NOT_CHECKED = "not checked"
"""A rule builds on one that is broken."""


@frozen
class Verdict:
    """What came of checking one rule.

    Attributes:
        rule: The rule.
        outcome: ``passed``, ``failed``, ``not checked`` or ``skipped``.
        message: What was seen and expected, or why the rule was not checked or skipped.
        seconds: How long it took.
        because: Ids of the broken rules for which it was not checked.
    """

    rule: Rule
    outcome: str
    message: str
    seconds: float
    because: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rule": self.rule.id,
            "about": self.rule.about,
            "verdict": self.outcome,
            "message": self.message,
            "not_checked_because_of": list(self.because),
            "documented": self.rule.documented,
            "seconds": round(self.seconds, 3),
        }


@frozen
class Diagnosis:
    """The verdicts on one adapter.

    Attributes:
        adapter: Its name.
        distribution: Its distribution and version.
        verdicts: One for each rule that was asked for, in order.
        alone: Whether they were chosen by name, and each was checked whatever it builds on.
    """

    adapter: str
    distribution: str
    verdicts: Sequence[Verdict]
    alone: bool = False

    @property
    def failures(self) -> list[Verdict]:
        """The rules that it breaks."""
        return [item for item in self.verdicts if item.outcome == FAILED]

    def hidden_by(self, rule: str) -> list[str]:
        """Ids of the rules that were not checked since a rule is broken that they build on."""
        return [item.rule.id for item in self.verdicts if rule in item.because]

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
            "not_checked": {item.rule.id: self.hidden_by(item.rule.id) for item in self.failures},
            "builds_on": {item.rule.id: list(item.rule.after) for item in self.verdicts} if self.alone else {},
            "seconds": round(self.seconds, 3),
            "verdicts": [item.as_dict() for item in self.verdicts],
        }


def adapters_to_check(adapter: str | None = None) -> list[str]:
    """Names of the installed adapters, or the given one (``UnknownAdapterError``)."""
    names = sorted({item.name for item in registered_adapters()})
    if adapter is None:
        return names
    if adapter not in names:
        find_adapter(adapter)
    return [adapter]


def rules_named(names: Sequence[str]) -> list[Rule]:
    """Rules by ids in the order of checking; ``ConfigurationError`` names the nearest of one that is not there."""
    for name in names:
        if name not in RULES:
            near = get_close_matches(name, RULES, n=3, cutoff=0.5)
            raise ConfigurationError(
                f"There is no rule {name!r}. "
                + (f"Nearest: {', '.join(near)}." if near else f"All of them are in {DOCUMENTATION}.")
            )
    return [rule for name, rule in RULES.items() if name in names]


def diagnose(
    adapter: str,
    report: Callable[[Verdict], None] = lambda verdict: None,
    rules: Sequence[Rule] = (),
    *,
    seed: int | None = None,
    architecture: str | None = None,
) -> Diagnosis:
    """Check one adapter; whatever is wrong with it becomes a verdict.

    Rules that are given are checked alone, whatever they build on. Without a seed or an architecture, those of the
    suite hold.
    """
    alone, suite = bool(rules), suite_of(adapter)
    suite.seed = suite.seed if seed is None else seed
    suite.architecture = architecture or suite.architecture
    with tempfile.TemporaryDirectory(prefix="interpretune-doctor-") as folder:
        verdicts = []
        for verdict in check_suite(suite, Path(folder), rules or None, alone=alone):
            report(verdict)
            verdicts.append(verdict)
    return Diagnosis(adapter, _distributions(adapter), verdicts, alone)


def check_suite(
    suite: AdapterConformance, folder: Path, rules: Iterable[Rule] | None = None, *, alone: bool = False
) -> Iterator[Verdict]:
    """Check rules, or all, on the adapter of a suite; ``alone``: also where one that they build on is broken.

    The rest of the process is left as it was.
    """
    bench = Bench(suite, folder)
    with globals_restored():
        for rule in RULES.values() if rules is None else rules:
            if alone:
                bench.broken.clear()
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
    because: tuple[str, ...] = ()
    try:
        with globals_restored(), contextlib.redirect_stdout(sys.stderr):
            rule.check(bench)
    except RuleBroken as broken:
        outcome, message = FAILED, str(broken)
    except RuleHidden as hidden:
        outcome, message, because = NOT_CHECKED, str(hidden), hidden.because
    except RuleSkipped as skipped:
        outcome, message = SKIPPED, str(skipped)
    return Verdict(rule, outcome, message, time.perf_counter() - start, because)


def _distributions(adapter: str) -> str:
    return ", ".join(sorted({f"{x.distribution} {x.version}" for x in registered_adapters() if x.name == adapter}))
