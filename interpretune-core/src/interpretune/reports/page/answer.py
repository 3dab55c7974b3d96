"""The answer to a question in a few sentences, made from its results."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from attrs import evolve, frozen

from interpretune.evidence import Change, Evidence, HeldOut
from interpretune.reports.page.ranking import Ranked, Ranking
from interpretune.reports.page.text import interval, number, percent, percents, set_to

OBJECTIVES = {
    "logit_diff": "the difference of logits",
    "log_prob": "the log-probability of the correct answer",
    "prob": "the probability of the correct answer",
    "kl": "the divergence from the unchanged model",
    "loss": "the loss",
}
METHODS = {
    "gradient": "estimated by its gradient",
    "integrated_gradients": "estimated by integrated gradients",
    "direct": "straight to the logits, without later layers",
}
NAMED = 3
"""Units that the answer names."""
Z = 1.96


@frozen
class Gathered:
    """Evidence of one of the stores.

    Attributes:
        store: Number of the store.
        of: Its units, in words.
        evidence: What was found, intervals on held-out rows ``widened``.
    """

    store: int
    of: str
    evidence: Evidence


@frozen
class Answer:
    """What was found.

    Attributes:
        found: Whether anything was.
        headline: That in a sentence.
        sentences: How well the model does, which units drive it, and whether it holds on held-out rows.
    """

    found: bool
    headline: str
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([self.headline, *self.sentences])


def answer(told: Mapping[str, Any], rows: pd.DataFrame, ranking: Ranking, gathered: Sequence[Gathered]) -> Answer:
    """Say what results say.

    Args:
        told: The question, as ``Effects.question``.
        rows: Its rows, as ``Effects.rows``.
        ranking: The units.
        gathered: Evidence of the stores.
    """
    proofs = _in_order(ranking, gathered)
    parts = [_performance(told, rows), _drivers(told, ranking), *_proofs(proofs)]
    sentences = tuple(sentence for sentence, _ in parts)
    doubts = [doubt for _, doubt in parts if doubt]
    if doubts == [parts[1][1]] and proofs and _is_proved(proofs[0][1]):
        n = len(proofs[0][1].units)
        return Answer(
            True, f"The {n} top units together change the answer; none alone is told apart from 0.", sentences
        )
    if doubts:
        return Answer(False, f"Nothing was found: {doubts[0]}.", sentences)
    sure = [item for item in ranking.units if item.sure][:2]
    verb = f"have the {_largest(ranking, sure)}" if len(sure) > 1 else "has the only effect that is told apart from 0,"
    names = " and ".join(item.name for item in sure)
    return Answer(True, f"{names} {verb} of {ranking.compared:,} units.", sentences)


def wilson(right: float, n: int) -> tuple[float, float]:
    """The 95\u00a0% interval of a share (Wilson, 1927)."""
    share, z2 = right / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def chance(rows: pd.DataFrame) -> float:
    """Share of rows that is right by drawing, or by always giving the answer that is right most often."""
    drawn = float(np.mean([1 / max(len(item), 1) for item in rows.answers]))
    if len({tuple(item) for item in rows.answers}) > 1:
        return drawn
    return max(drawn, max(Counter(rows.correct).values()) / len(rows))


def objective_words(told: Mapping[str, Any]) -> str:
    """The objective in words."""
    first, _, rest = str(told["objective"]).partition(" ")
    return f"{OBJECTIVES.get(first, first)}{' ' + rest if rest else ''}"


def rows_of(told: Mapping[str, Any]) -> str:
    """The number of rows in words."""
    return f"{told['rows']:,} row{'s' * (told['rows'] != 1)}"


def widened(held_out: HeldOut) -> HeldOut:
    """The same proof with the wider of the bootstrap's intervals and Wilson's: the former of 0 or 1 has no width."""
    changes = []
    for item in held_out.changes:
        if item.among:
            low, high = wilson(item.flipped * item.among, item.among)
            item = evolve(item, low=float(np.fmin(low, item.low)), high=float(np.fmax(high, item.high)))
        changes.append(item)
    return evolve(held_out, changes=tuple(changes))


def _performance(told: Mapping[str, Any], rows: pd.DataFrame) -> tuple[str, str]:
    """How well the model does, and what speaks against finding anything."""
    mean = f"{objective_words(told)} is {_amount(told, rows.objective.mean())} on average"
    if "objective_spliced" in rows and not np.allclose(rows.objective_spliced, rows.objective):
        mean += f", {_amount(told, rows.objective_spliced.mean())} with the dictionaries spliced in"
    rated = rows[rows.predicted >= 0]
    if not len(rated):
        return f"Over {rows_of(told)}, {mean}.", ""
    right, n, by_chance = int((rated.predicted == rated.correct).sum()), len(rated), chance(rated)
    low, high = wilson(right, n)
    sentence = (
        f"The model gives the correct answer in {right:,} of {n:,} row{'s' * (n != 1)} ({percent(right / n)}, "
        f"95\u00a0% interval {percents(low, high)}; chance is {percent(by_chance)}); {mean}."
    )
    if low > by_chance:
        return sentence, ""
    sentence += " That is no better than chance, so effects do not say how it finds the answer."
    return sentence, "on this question the model does no better than chance"


def _drivers(told: Mapping[str, Any], ranking: Ranking) -> tuple[str, str]:
    sure = [item for item in ranking.units if item.sure]
    if not sure:
        largest = "".join(f" The largest is that of {_effect(told, item, ())}." for item in ranking.units[:1])
        sentence = (
            f"Of {ranking.compared:,} units, none has an effect that is told apart from 0 by intervals that are "
            f"widened for as many units and for {rows_of(told)}.{largest}"
        )
        return sentence, f"no effect of {ranking.compared:,} units is told apart from 0"
    alone = (
        "changed alone" if len({str(item.value) for item in ranking.units}) > 1 else f"{set_to(sure[0].value)} alone"
    )
    how = METHODS.get(sure[0].method) or alone
    listed, largest = _listed(told, sure[:NAMED], ranking.answers), _largest(ranking, sure[:NAMED])
    sentence = f"Of {ranking.compared:,} units, each {how}, the {largest} have {listed}."
    if NAMED < len(sure) < len(ranking.units):
        sentence += f" Of the {len(ranking.units)} shown, {len(sure)} are told apart from 0."
    return sentence, ""


def _largest(ranking: Ranking, sure: Sequence[Ranked]) -> str:
    """What the effects of units that are sure are called: units above them may not be."""
    at_the_top = all(item.sure for item in ranking.units[: len(sure)])
    return "largest effects" if at_the_top else "largest effects that are told apart from 0"


def _listed(told: Mapping[str, Any], units: Sequence[Ranked], answers: Sequence[str]) -> str:
    shown = [_effect(told, item, answers) for item in units]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _effect(told: Mapping[str, Any], item: Ranked, answers: Sequence[str]) -> str:
    """A unit and its mean effect; where that hides effects of both signs, those on the rows of each answer."""
    if answers and item.low <= 0 <= item.high:
        pairs = zip(item.by_answer, answers, strict=True)
        parts = [f"{_amount(told, value)} where “{text.strip()}” is right" for value, text in pairs]
        return f"{item.name} ({', '.join(parts)})"
    within = "no interval" if math.isnan(item.low) else f"95\u00a0% interval {interval(item.low, item.high)}"
    return f"{item.name} ({_amount(told, item.mean)}; {within})"


def _amount(told: Mapping[str, Any], value: float) -> str:
    unit = str(told.get("unit") or "")
    return f"{number(value)} {unit}".strip() if unit != "probability" else number(value)


def _in_order(ranking: Ranking, gathered: Sequence[Gathered]) -> list[tuple[str, HeldOut]]:
    """Proof of each store that has any, first the one that judges: of the store whose unit leads the ranking."""
    leading = ranking.units[0].store if ranking.units else -1
    found = [(item.store != leading, item.of, item.evidence.held_out) for item in gathered]
    return [(of, held) for _, of, held in sorted(found, key=lambda item: item[0]) if held is not None]


def _proofs(proofs: Sequence[tuple[str, HeldOut]]) -> list[tuple[str, str]]:
    parts = []
    for i, (of, held) in enumerate(proofs):
        sentence, doubt = _proof(held)
        told = f"{of}: {sentence[0].lower()}{sentence[1:]}" if len(proofs) > 1 else sentence
        parts.append((told, "" if i else doubt))
    return parts or [("Whether this holds on other rows was not tested.", "")]


def _judged(held: HeldOut) -> tuple[Change, Change | None]:
    """The change by which the claim is judged, and its control."""
    found = {item.control: item for item in held.changes if item.name == held.judged}
    return found[False], found.get(True)


def _is_proved(held: HeldOut) -> bool:
    change, control = _judged(held)
    return control is not None and change.low > control.high


def _proof(held: HeldOut) -> tuple[str, str]:
    """What one change does beside its control; which one was chosen before anything was found."""
    start = f"On {held.rows:,} held-out rows, of which the model answers {percent(held.share_correct)} correctly"
    change, control = _judged(held)
    if math.isnan(change.flipped):
        return f"{start}, there is none whose answer could change.", "on held-out rows no answer could change"
    flips = f"{start}, {change.told} turn {_share(change)} of the right answers wrong"
    if control is None:
        sentence = f"{flips}. There is no control, since not as many other units are active."
        return sentence, "" if change.low > 0 else "on held-out rows the top units change no answer"
    sentence = f"{flips}, against {_share(control)} by {control.told}."
    if _is_proved(held):
        return sentence, ""
    return (
        f"{sentence} The two are not told apart.",
        "on held-out rows the top units are not told apart from others drawn at random",
    )


def _share(change: Change) -> str:
    interval = "" if math.isnan(change.low) else f" (95\u00a0% interval {percents(change.low, change.high)})"
    return f"{percent(change.flipped)}{interval}"
