"""Numbers and texts as the page shows them."""

from __future__ import annotations

import math
import re
from typing import Any
from urllib.parse import quote, urlsplit

from attrs import frozen
from markupsafe import Markup

from interpretune.evidence import ShadedPrompt

LONGEST = 2000
"""Letters of a text that are shown."""
BEFORE, AFTER = 120, 40
"""Tokens of a prompt that are shown before and after its strongest."""
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Letters that control a device, or turn the direction of what follows."""
SET_TO = {
    "zero": "set to zero",
    "mean": "set to its mean",
    "corrupted": "set to its value in the corrupted prompt",
    "given": "set to given numbers",
}


def number(value: float) -> str:
    """Three digits, with a minus sign."""
    if not math.isfinite(value):
        return "undefined"
    return f"{value + 0.0:.3g}".replace("-", "\u2212")


def interval(low: float, high: float) -> str:
    """The ends of an interval; a single row has none."""
    return "no interval" if math.isnan(low) else f"{number(low)} to {number(high)}"


def percent(share: float) -> str:
    """A share in words."""
    return f"{100 * share:.0f}\u00a0%" if math.isfinite(share) else "undefined"


def percents(low: float, high: float) -> str:
    """The ends of an interval of a share."""
    return "no interval" if math.isnan(low) else f"{100 * low:.0f} to {100 * high:.0f}\u00a0%"


def set_to(value: Any) -> str:
    """What units are set to, in words."""
    return SET_TO.get(value, f"set to {value}") if isinstance(value, str) else f"set to {value:g}"


def visible(value: Any) -> Any:
    """Text in which letters that are not printed, or that turn the direction of writing, are shown by others."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    text = value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…"
    return UNSEEN.sub("\ufffd", text.replace("\n", "↵").replace("\t", "⇥"))


def web(url: str | None) -> str | None:
    """An address of the web; None for any other, such as one that runs a script."""
    if not url:
        return None
    page = quote(url, safe=":/?#[]@!$&()*+,;=%~")
    try:
        parts = urlsplit(page)
    except ValueError:
        return None
    return page if parts.scheme in ("http", "https") and parts.netloc else None


@frozen
class Token:
    """A token as it is shown: its text, how it is marked, how strong the unit is there (0 to 1), and the number."""

    text: str
    kind: str
    strength: float
    title: str


@frozen
class Window:
    """The part of a prompt that is shown.

    Attributes:
        tokens: Its tokens.
        before: Whether some before it are left out.
        after: Whether some after it are.
        predicted: The answer that the model gives; None: answers are not rated.
        right: Whether that is correct.
    """

    tokens: tuple[Token, ...]
    before: bool
    after: bool
    predicted: str | None
    right: bool


def window(prompt: ShadedPrompt) -> Window:
    """The tokens of a prompt around the one at which the unit is strongest."""
    sizes = [abs(value) for value in prompt.activations]
    most = max(sizes, default=0.0) or 1.0
    peak = sizes.index(max(sizes)) if sizes else 0
    first, last = max(0, peak - BEFORE), min(len(prompt.tokens), peak + AFTER)
    tokens = []
    for i in range(first, last):
        value = prompt.activations[i]
        kinds = [("up" if value > 0 else "down") if value else "", "at" if i == prompt.position else ""]
        strength = round(abs(value) / most, 2)
        tokens.append(Token(prompt.tokens[i], " ".join(filter(None, kinds)), strength, number(value) if value else ""))
    rated = 0 <= prompt.predicted < len(prompt.answers)
    predicted = prompt.answers[prompt.predicted] if rated else None
    return Window(tuple(tokens), first > 0, last < len(prompt.tokens), predicted, prompt.predicted == prompt.correct)
