"""What is known of a question's answer beyond its effects: proof on held-out rows, cards of units, steered texts.

Units are named as ``Effects.top`` names them. An index of an answer is -1 where there is none.
"""

from __future__ import annotations

from typing import Literal

from attrs import frozen

ChangeName = Literal["ablated", "corrupted", "added", "random"]
"""What happens to the top units: they are set to zero (or to the mean or the numbers of the question); they get the
values of the corrupted prompts; in a run of the corrupted prompts they get their clean values; or others of the same
unit sets, drawn at random, are changed as in ``ablated`` or as in ``corrupted``."""


@frozen
class Change:
    """What all top units together do on held-out rows.

    Attributes:
        name: What is changed.
        told: The same in words, such as "the 5 units set to 0".
        share_correct: Share of all rows in which the correct answer is rated highest after the change.
        flipped: Share of the rows that are right before and wrong after. Of ``added``: of the rows whose clean prompt
            is answered right and whose corrupted prompt is not, those whose corrupted prompt gets the clean answer.
            Of ``random`` both shares are means over several draws. NaN where there are no such rows.
        among: Number of the rows of which ``flipped`` is a share.
        low: Lower end of the 95 % bootstrap interval of ``flipped`` over rows.
        high: Upper end.
    """

    name: ChangeName
    told: str
    share_correct: float
    flipped: float
    among: int
    low: float
    high: float


@frozen
class HeldOut:
    """Proof on rows that did not choose the units.

    Attributes:
        rows: Number of rows.
        share_correct: Share in which the correct answer is rated highest, nothing changed; with all dictionaries
            spliced in where a top unit is a latent.
        units: The top units in words.
        changes: What was tried: ``ablated`` and, if the sets have other active units, ``random``; with corrupted
            prompts ``corrupted``, ``added`` and a second ``random`` too.
    """

    rows: int
    share_correct: float
    units: tuple[str, ...]
    changes: tuple[Change, ...]


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


@frozen
class Card:
    """What one unit is about.

    Attributes:
        name: In words, such as ``layers.15.mlp_act neuron 7``.
        units: Name of its unit set.
        unit: Its id there.
        kind: ``latent``, ``neuron``, ``head`` or ``vector``.
        mean_effect: On the objective, over all points of the question.
        low: Lower end of the 95 % bootstrap interval of that over rows.
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
