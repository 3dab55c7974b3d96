"""What is known of a question's answer beyond its effects: proof on held-out rows, cards of units, steered texts.

Units are named as ``Effects.top`` names them. An index of an answer is -1 where there is none. What cannot be is
refused with a ``ValueError``, since stores of others are read too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from attrs import frozen

ChangeName = Literal["ablated", "corrupted", "added"]
"""What happens to units: they are set to zero (or to the mean or the numbers of the question); they get the values of
the corrupted prompts; or in a run of the corrupted prompts they get their clean values."""


def _must(holds: bool, told: str) -> None:
    if not holds:
        raise ValueError(told)


def _must_be_shares(*values: float) -> None:
    for value in values:
        _must(math.isnan(value) or 0 <= value <= 1, f"{value:g} is no share")


def _must_be_counts(*values: int) -> None:
    for value in values:
        _must(value >= 0, f"{value} is no number of rows, tokens or units")


def _must_be_interval(low: float, high: float) -> None:
    _must(low <= high or (math.isnan(low) and math.isnan(high)), f"{low:g} to {high:g} is no interval")


def _must_be_answers(answers: Sequence[str], *which: int) -> None:
    for index in which:
        _must(-1 <= index < len(answers), f"{index} is none of {len(answers)} answers")


@frozen
class Change:
    """What all top units together do on held-out rows, or others in their place.

    Attributes:
        name: What is changed.
        control: Whether the units are not the top ones but others, drawn at random; then the shares are means over
            several draws.
        told: The same in words, such as "the 5 units set to 0".
        share_correct: Share of all rows in which the correct answer is rated highest after the change.
        flipped: Share of the rows that are right before and wrong after. Of ``added``: of the rows whose clean prompt
            is answered right and whose corrupted prompt is not, those whose corrupted prompt gets the clean answer.
            NaN where there are no such rows.
        among: Number of the rows of which ``flipped`` is a share.
        low: Lower end of the 95 % bootstrap interval of ``flipped`` over rows; NaN with fewer than two of them.
        high: Upper end.
    """

    name: ChangeName
    control: bool
    told: str
    share_correct: float
    flipped: float
    among: int
    low: float
    high: float

    def __attrs_post_init__(self) -> None:
        _must_be_shares(self.share_correct, self.flipped, self.low, self.high)
        _must_be_counts(self.among)
        _must_be_interval(self.low, self.high)


@frozen
class HeldOut:
    """Proof on rows that did not choose the units.

    Attributes:
        rows: Number of rows.
        share_correct: Share in which the correct answer is rated highest, nothing changed; with all dictionaries
            spliced in where a top unit is a latent.
        units: The top units in words.
        judged: The change by which the claim is judged, chosen by the question and not by what is found: ``corrupted``
            where that is its value and held-out rows have corrupted prompts, else ``ablated``.
        changes: What was tried: ``ablated``, and with corrupted prompts ``corrupted`` and ``added``; each before its
            control, where the sets have as many other active units.
    """

    rows: int
    share_correct: float
    units: tuple[str, ...]
    judged: Literal["ablated", "corrupted"]
    changes: tuple[Change, ...]

    def __attrs_post_init__(self) -> None:
        _must_be_shares(self.share_correct)
        _must(self.rows >= max([1, *(item.among for item in self.changes)]), f"{self.rows} rows are too few")
        tried = [(item.name, item.control) for item in self.changes]
        _must((self.judged, False) in tried and len({*tried}) == len(tried), f"{tried} is no set of changes")


@frozen
class ShadedPrompt:
    """A prompt in which a unit is strong.

    Attributes:
        row: Row of the question.
        tokens: Texts of the tokens of the prompt.
        activations: Of the unit at each: of one coordinate its value; of several, the norm.
        answers: Texts that may follow.
        correct: Index of the correct one.
        predicted: Index of the one that is rated highest.
        position: Index in ``tokens`` of the answer position, the last token.
    """

    row: int
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    answers: tuple[str, ...]
    correct: int
    predicted: int
    position: int

    def __attrs_post_init__(self) -> None:
        n, given = len(self.tokens), len(self.activations)
        _must(n == given, f"a prompt has {n} tokens and {given} activations")
        _must(0 <= self.position < n, f"token {self.position} is none of the {n} of a prompt")
        _must_be_counts(self.row)
        _must_be_answers(self.answers, self.correct, self.predicted)


@frozen
class TokenEffect:
    """What a unit does to the logit of a token.

    Attributes:
        token: Text of the token.
        value: In logits, positive where the unit makes the token more likely.
    """

    token: str
    value: float


@frozen
class Dose:
    """What happens when a unit has a multiple of its activation.

    Attributes:
        factor: The multiple: 0, 1/2, 1 (nothing changed), 2, 4.
        objective: Mean over rows, in the units of the objective.
        share_correct: Share of rows in which the correct answer is rated highest; NaN where answers are not rated.
    """

    factor: float
    objective: float
    share_correct: float

    def __attrs_post_init__(self) -> None:
        _must_be_shares(self.share_correct)


@frozen
class ChangedRow:
    """A row whose answer changes when a unit alone is ablated.

    Attributes:
        row: Row of the question.
        prompt: Its text.
        before: The answer that is rated highest.
        after: The one with the unit ablated.
    """

    row: int
    prompt: str
    before: str
    after: str

    def __attrs_post_init__(self) -> None:
        _must_be_counts(self.row)


@frozen
class ActiveTokens:
    """Tokens of all prompts at which a unit is active: one entry for each.

    Attributes:
        rows: Rows of the question.
        positions: Indices of the tokens in the prompts of these.
        values: Activations there, not 0.
    """

    rows: tuple[int, ...]
    positions: tuple[int, ...]
    values: tuple[float, ...]

    def __attrs_post_init__(self) -> None:
        _must_be_counts(*self.rows, *self.positions)
        _must(
            len(self.rows) == len(self.positions) == len(self.values),
            "each active token has one row, position and value",
        )
        _must(all(map(math.isfinite, self.values)), "an activation is NaN or infinite")


@frozen
class Card:
    """What one unit is about.

    Attributes:
        name: In words, such as ``layers.15.mlp_act neuron 7``.
        units: Name of its unit set.
        unit: Its id there.
        kind: ``latent``, ``neuron``, ``head`` or ``vector``.
        mean_effect: On the objective, over all points of the question.
        low: Lower end of the 95 % bootstrap interval of that over rows; NaN with one row.
        high: Upper end.
        share_active: Share of the tokens of all prompts at which it is not zero.
        prompts: Those in which it is strongest, strongest first.
        edges: Ends of the bins of a histogram of its activations at all tokens of all prompts, one more than counts.
        counts: Tokens in each bin.
        promoted_total: Tokens whose logits at the answer position it raises most, everything after it computed anew:
            the mean over the rows of ``promoted_in`` of clean minus ablated logits, exact, over the whole vocabulary.
        suppressed_total: Those that it lowers most.
        promoted_direct: The same by what it writes into the residual stream alone, through the last norm, its scale
            that of the forward, and the unembedding; means over the same rows. Empty where that is not defined.
        suppressed_direct: Those that it lowers most in this way.
        doses: Dose and response.
        changed: Rows whose answer changes when it alone is ablated.
        url: Where a public dictionary has a page about it.
        promoted_in: Of which rows tokens are told: all; or, if 2 to 4 answers are correct in several rows each, those
            with the correct answer for which the mean size of its effects is largest. What a unit does for one answer
            would cancel what it does for the other.
        logit_edges: Ends of the bins of a histogram over the vocabulary of what it writes straight to the logits, as in
            ``promoted_direct``, one more than counts. Empty where that is not defined.
        logit_counts: Tokens of the vocabulary in each bin.
        active: Of a latent, all tokens at which it is active; None for other units.
    """

    name: str
    units: str
    unit: int
    kind: str
    mean_effect: float
    low: float
    high: float
    share_active: float
    prompts: tuple[ShadedPrompt, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    promoted_total: tuple[TokenEffect, ...]
    suppressed_total: tuple[TokenEffect, ...]
    promoted_direct: tuple[TokenEffect, ...]
    suppressed_direct: tuple[TokenEffect, ...]
    doses: tuple[Dose, ...]
    changed: tuple[ChangedRow, ...]
    url: str | None
    promoted_in: str = "all rows"
    logit_edges: tuple[float, ...] = ()
    logit_counts: tuple[int, ...] = ()
    active: ActiveTokens | None = None

    def __attrs_post_init__(self) -> None:
        _must_be_shares(self.share_active)
        _must_be_counts(self.unit, *self.counts)
        _must_be_interval(self.low, self.high)
        n, bins = len(self.edges), len(self.counts)
        rising = all(low <= high for low, high in pairwise(self.edges))
        _must(rising and n == (bins + 1 if bins else 0), f"{n} ends are none of a histogram of {bins} bins")


@frozen
class PromptTokens:
    """The prompts of a question as the model reads them.

    Attributes:
        rows: Ids of the tokens of the prompt of each row.
        pad: The id with which shorter prompts are filled up.
    """

    rows: tuple[tuple[int, ...], ...]
    pad: int

    def __attrs_post_init__(self) -> None:
        _must_be_counts(self.pad, *(token for row in self.rows for token in row))
        _must(all(self.rows), "a prompt has no tokens")


@frozen
class Continuation:
    """A prompt continued, as it is and with units changed.

    A continuation begins with the likeliest of the tokens with which the row's answers begin, and goes on greedily.

    Attributes:
        row: Row of the rows that are continued.
        prompt: Its text.
        plain: What follows, nothing changed.
        steered: What follows with the units changed.
        told: The change in words, and at which tokens.
    """

    row: int
    prompt: str
    plain: str
    steered: str
    told: str

    def __attrs_post_init__(self) -> None:
        _must_be_counts(self.row)
