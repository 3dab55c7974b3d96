"""``interpretune report``: a page of stores, and what it says in at most forty lines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from interpretune.evidence import Card, HeldOut
from interpretune.reports.page.html_page import Page
from interpretune.reports.page.text import interval, number, percent, percents, visible
from interpretune.reports.sections import finite_or_none

WIDTH = 79
LINES = 40
"""Most lines without ``--verbose``."""
NAME_WIDTH, TOKENS = 44, 6
N_TOP = 10


@frozen(eq=False)
class WrittenReport:
    """A page that was written.

    Attributes:
        page: What it shows.
        path: Where it is.
    """

    page: Page
    path: Path

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        page = self.page
        return {
            "title": page.title,
            "found": page.answer.found,
            "answer": [page.answer.headline, *page.answer.sentences],
            "ranking": [{name: plain(value) for name, value in asdict(item).items()} for item in page.ranking.units],
            "held_out": [{"of": of or None, **plain(asdict(held))} for of, held in page.proofs],
            "page": str(self.path),
            "bytes": self.path.stat().st_size,
        }

    def text(self, *, verbose: bool = False) -> str:
        """For people.

        Args:
            verbose: The whole ranking and the cards, however long that is.
        """
        head = [*_wrapped(self.page.title), "", *(line for part in self._answer for line in _wrapped(part)), ""]
        proof = [line for of, held in self.page.proofs for line in (*_proof(of, held), "")]
        place = [f"{self.path} ({self.path.stat().st_size / 1000:,.0f} kB) shows more; it can be mailed."]
        room = LINES - len(head) - len(proof) - len(place) - 3
        n_units = len(self.page.ranking.units) if verbose else max(1, min(N_TOP, room))
        cards = [line for _, card in self.page.cards for line in _card(card)] if verbose else []
        lines = [*head, *self._ranking(n_units), "", *proof, *cards, *place]
        return "\n".join(lines if verbose or len(lines) <= LINES else [*lines[: LINES - 1], lines[-1]])

    @property
    def _answer(self) -> Sequence[str]:
        return [self.page.answer.headline, *self.page.answer.sentences]

    def _ranking(self, n: int) -> list[str]:
        from tabulate import tabulate

        ranking = self.page.ranking
        rows = []
        for item in ranking.units[:n]:
            row = {
                "unit": _name(item.name),
                f"effect{self.page.in_units}": number(item.mean),
                "95\u00a0%": interval(item.low, item.high),
            }
            if ranking.approximate:
                row[ranking.approximate[:10]] = "" if item.approximate is None else number(item.approximate)
            rows.append({**row, "active": percent(item.share_active)})
        return tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True).splitlines() if rows else []


def write_report(stores: Sequence[Path], output: Path) -> WrittenReport:
    """Write the page of some stores.

    Raises:
        StoreError: A store cannot be used.
        OutputError: The page cannot be written.
    """
    page = Page.of(stores)
    return WrittenReport(page, page.write(output))


def _proof(of: str, held: HeldOut) -> Iterator[str]:
    """What each change does beside its control."""
    yield from _wrapped(f"Answers that change on {held.rows:,} held-out rows{of and ': '}{of}")
    controls = {item.name: item for item in held.changes if item.control}
    for item in held.changes:
        if item.control:
            continue
        control = controls.get(item.name)
        told = item.told + (f" (others in their place: {percent(control.flipped)})" if control else "")
        span = "" if math.isnan(item.low) else f" ({percents(item.low, item.high)})"
        start = f"  {percent(item.flipped):>5}{span:<17} "
        yield from textwrap.wrap(visible(told), WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(visible(text), WIDTH) or [""]


def _name(text: str) -> str:
    text = visible(text)
    return text if len(text) <= NAME_WIDTH else f"…{text[1 - NAME_WIDTH :]}"


def _card(card: Card) -> Iterator[str]:
    yield f"{_name(card.name)}: {number(card.mean_effect)}, active at {percent(card.share_active)} of tokens"
    for told, items in (("promotes", card.promoted_total), ("suppresses", card.suppressed_total)):
        if items:
            yield f"  {told} {' '.join(repr(visible(item.token)) for item in items[:TOKENS])}"
    for prompt in card.prompts[:2]:
        yield from textwrap.wrap(visible("".join(prompt.tokens)), WIDTH, initial_indent="  ", subsequent_indent="    ")
    yield ""


def plain(value: Any) -> Any:
    """A value as JSON holds it: numbers that are not finite are None."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else finite_or_none(value)
