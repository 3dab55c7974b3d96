"""Shows diagnoses as text."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from interpretune.testing.doctor import FAILED, NOT_CHECKED, PASSED, SKIPPED, Diagnosis, Verdict


def as_text(diagnoses: Sequence[Diagnosis]) -> str:
    """A table of rules and verdicts, then what failed and which rules that hides, then why rules were skipped."""
    parts = [_table(diagnoses)]
    failures = [_failure(item, verdict) for item in diagnoses for verdict in item.failures]
    if failures:
        parts += ["Failures", *failures]
    if skipped := _skipped(diagnoses):
        parts += ["Skipped", "\n".join(skipped)]
    if alone := _alone(diagnoses):
        parts.append(alone)
    parts.append("\n".join(map(_summary, diagnoses)))
    return "\n\n".join(parts)


def _failure(diagnosis: Diagnosis, verdict: Verdict) -> str:
    text = f"{diagnosis.adapter}: {verdict.message}"
    if hidden := diagnosis.hidden_by(verdict.rule.id):
        text += (
            f"\n  not checked, as they build on it ({len(hidden)}): {', '.join(hidden)}"
            f"\n  to check one all the same: interpretune doctor {diagnosis.adapter} --rule {hidden[0]}"
        )
    return text


def _alone(diagnoses: Sequence[Diagnosis]) -> str:
    """What rules that were asked for by name build on, which was not looked at."""
    rules = [verdict.rule for verdict in diagnoses[0].verdicts] if diagnoses and diagnoses[0].alone else []
    lines = [f"{rule.id} was checked alone; it builds on {', '.join(rule.after)}" for rule in rules if rule.after]
    return "\n".join(lines)


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
    outcomes = [item.outcome for item in diagnosis.verdicts]
    numbers = ", ".join(f"{outcomes.count(name)} {name}" for name in (PASSED, FAILED, NOT_CHECKED, SKIPPED))
    return f"{diagnosis.adapter} ({diagnosis.distribution}): {numbers} in {diagnosis.seconds:.0f} s"
