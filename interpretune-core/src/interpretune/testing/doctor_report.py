"""Shows diagnoses as text."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from interpretune.testing.doctor import FAILED, PASSED, SKIPPED, Diagnosis


def as_text(diagnoses: Sequence[Diagnosis]) -> str:
    """A table of rules and verdicts, then what failed, then why rules were skipped."""
    parts = [_table(diagnoses)]
    failures = [f"{item.adapter}: {verdict.message}" for item in diagnoses for verdict in item.failures]
    if failures:
        parts += ["Failures", *failures]
    if skipped := _skipped(diagnoses):
        parts += ["Skipped", "\n".join(skipped)]
    parts.append("\n".join(map(_summary, diagnoses)))
    return "\n\n".join(parts)


def _table(diagnoses: Sequence[Diagnosis]) -> str:
    rules = [verdict.rule for verdict in diagnoses[0].verdicts] if diagnoses else []
    outcomes = {(item.adapter, verdict.rule.id): verdict.outcome for item in diagnoses for verdict in item.verdicts}
    rows = [[rule.id, *(outcomes[item.adapter, rule.id] for item in diagnoses)] for rule in rules]
    return tabulate(rows, headers=["rule", *(item.adapter for item in diagnoses)], tablefmt="simple")


def _skipped(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """One line for each reason of an adapter."""
    lines = []
    for item in diagnoses:
        reasons: dict[str, list[str]] = {}
        for verdict in item.verdicts:
            if verdict.outcome == SKIPPED:
                reasons.setdefault(verdict.message, []).append(verdict.rule.id)
        lines += [f"{item.adapter}: {', '.join(rules)}: {reason}" for reason, rules in reasons.items()]
    return lines


def _summary(diagnosis: Diagnosis) -> str:
    counts = {name: sum(item.outcome == name for item in diagnosis.verdicts) for name in (PASSED, FAILED, SKIPPED)}
    numbers = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{diagnosis.adapter} ({diagnosis.distribution}): {numbers} in {diagnosis.seconds:.0f} s"
