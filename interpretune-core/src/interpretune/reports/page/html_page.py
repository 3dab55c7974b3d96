"""A page about a question: what it shows, made from stores alone, without a model."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from attrs import define, evolve, field
from markupsafe import Markup

from interpretune.circuits import Circuit
from interpretune.errors import OutputError
from interpretune.evidence import Card, Continuation, Evidence, HeldOut, ShadedPrompt
from interpretune.questions.result import Effects, Results
from interpretune.reports.page import drawing
from interpretune.reports.page.answer import Answer, Gathered, answer, objective_words, rows_of, widened
from interpretune.reports.page.belonging import PageStores
from interpretune.reports.page.circuit import CircuitView
from interpretune.reports.page.curves import curves
from interpretune.reports.page.origin import Origin, model_name, origin, units_of
from interpretune.reports.page.ranking import Ranking, rank
from interpretune.reports.page.strongest import StrongestTable, strongest_table
from interpretune.reports.page.text import interval, number, percent, percents, set_to, visible, web, window
from interpretune.store.store import AnalysisStore
from interpretune.system.html_table import html_table
from interpretune.system.whole_file import output_file

TEMPLATES = Path(__file__).parent / "templates"
N_UNITS = 40
"""Units of the ranking."""
MOST_CHANGED = 12
"""Rows on a card whose answer changes."""
MOST_BYTES = 6_000_000
GIST, BEFORE = 3, 8
"""Tokens beside a unit's name that say what it promotes, and tokens of a prompt before the strongest one."""
NO_EVIDENCE = "No evidence was gathered."
Cards = Sequence[tuple[int, Card]]


def write_page(stores: Iterable[str | Path | Results | AnalysisStore], path: str | Path) -> Path:
    """Write a page about effects of units: one HTML file that loads nothing from elsewhere.

    Args:
        stores: Folders, or what was opened: effects of units, exact or by gradients, of the same rows; beside them
            other analyses of the same model. Evidence that was stored with effects is shown too.
        path: The file.

    Returns:
        The file.

    Raises:
        StoreError: A store is damaged, is not finished, or does not belong to the others, or none has effects of units.
        OutputError: The file cannot be written.
    """
    return Page.of(stores).write(path)


@define(eq=False)
class Page:
    """What a page shows.

    Attributes:
        stores: Where it comes from.
        ranking: The top units.
        answer: What was found.
        rows: Rows of the question.
        gathered: Evidence of the stores.
        circuits: Circuits of the stores.
    """

    stores: PageStores
    ranking: Ranking
    answer: Answer
    rows: pd.DataFrame
    gathered: tuple[Gathered, ...] = ()
    circuits: tuple[CircuitView, ...] = ()
    _path: Path = field(default=Path("page.html"), init=False)

    @classmethod
    def of(cls, stores: Iterable[str | Path | Results | AnalysisStore], n_units: int = N_UNITS) -> Page:
        """Read stores; see ``write_page``.

        Args:
            stores: The stores.
            n_units: Units of the ranking.
        """
        given = PageStores.of(stores)
        ranking = rank(given.results, given.approximations, n_units)
        first = given.results[0]
        rows, gathered = first.rows(), tuple(map(_gathered, range(len(given.results)), given.results))
        circuits = tuple(item for item in map(_circuit, range(len(given.results)), given.results) if item.found)
        said = answer(first.question, rows, ranking, gathered)
        of_sets = [sentence for item in circuits for sentence in item.sentences]
        said = evolve(said, sentences=(*said.sentences, *of_sets))
        return cls(given, ranking, said, rows, gathered, circuits)

    def write(self, path: str | Path) -> Path:
        """Write the page.

        Raises:
            OutputError: The file cannot be written.
        """
        path = Path(path)
        if path.is_dir():
            raise OutputError(f"{path} is a folder; a page is a file. Give a name such as {path / 'page.html'}.")
        text = self.html(path)
        with output_file(path, "give another name") as partial:
            partial.write_text(text, encoding="utf-8")
        return path

    def html(self, path: Path) -> str:
        """The page as HTML; cards are left out, the last first, where it would be larger than 6 MB.

        Args:
            path: Where it goes: stores are named as seen from there.
        """
        self._path = path
        cards = self.cards
        while True:
            text = self._rendered(cards)
            if len(text.encode()) <= MOST_BYTES or not cards:
                return text
            cards = cards[: len(cards) // 2]

    def _rendered(self, cards: Cards) -> str:
        files = ["sort.js", *(["graph.js"] if self.circuits else [])]
        script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in files)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        units = self.ranking.units
        keys = [(store, card.units, card.unit) for store, card in cards]
        spread = [value for item in units for value in (item.low, item.high, item.mean, item.approximate or 0.0)]
        return _ENVIRONMENT.get_template("page.html").render(
            page=self,
            ranking=self.ranking,
            cards=cards,
            anchors={key: f"card-{i}" for i, key in reversed([*enumerate(keys, start=1)])},
            gists={key: _gist(card) for key, (_, card) in zip(keys, cards, strict=True)},
            cards_left_out=len(self.cards) - len(cards),
            scale=drawing.Scale.of([0.0, *spread]),
            style=_style(),
            script=Markup(script),  # noqa: S704
            script_hash=f"sha256-{digest}",
            version=version("interpretune-core"),
        )

    # ------------------------------------------------------------------------------------------- what the template asks

    @property
    def question(self) -> Mapping[str, Any]:
        """Of the first store."""
        return self.stores.results[0].question

    @property
    def _every(self) -> list[AnalysisStore]:
        stores = self.stores
        return [*(item.store for item in (*stores.results, *stores.strongest)), *stores.analyses]

    @property
    def strongest(self) -> list[StrongestTable]:
        """Tables of effects on units, and of components."""
        return [strongest_table(item) for item in self.stores.strongest]

    @property
    def title(self) -> str:
        """What was asked, in words."""
        model = model_name(self._every) or "the model"
        answers = {tuple(item) for item in self.rows.answers}
        if len(answers) == 1 and 2 <= len(given := next(iter(answers))) <= 4:
            words = [f"“{text.strip()}”" for text in given]
            return f"What makes {model} answer {', '.join(words[:-1])} or {words[-1]}?"
        if self.question["objective"] == "kl":
            return f"What changes the predictions of {model}?"
        return f"What changes {objective_words(self.question)} of {model}?"

    @property
    def byline(self) -> str:
        """Rows, units and method in a line."""
        told = self.question
        kinds: dict[str, int] = {}
        for item in self.stores.results:
            for units in item.question["units"]:
                kinds[units["kind"]] = kinds.get(units["kind"], 0) + units["chosen"]
        counted = ", ".join(f"{count:,} {kind}{'s' * (count != 1)}" for kind, count in kinds.items())
        return f"{told['method'].replace('_', ' ').capitalize()} effects of {counted}, {rows_of(told)}"

    @property
    def in_units(self) -> str:
        """The unit of the objective, behind a comma."""
        return f", {self.question['unit']}" if self.question["unit"] else ""

    @property
    def several_values(self) -> bool:
        """Whether units are set to different things."""
        return len({str(item.question["value"]) for item in self.stores.results}) > 1

    @property
    def ranking_caption(self) -> str:
        """What the table shows."""
        told, shown = self.question, len(self.ranking.units)
        what = "straight to the logits" if told["method"] == "direct" else f"each {set_to(told['value'])} alone"
        if self.several_values:
            what = "each changed alone"
        at = str(told["positions"])
        where = {"answer": "", "each": ", at one token at a time"}.get(at, f", at a token of the span {at}")
        out = "".join(sorted({item.left_out for item in self.stores.results}))
        return (
            f"The {shown:,} of {self.ranking.compared:,} units whose effects on {objective_words(told)} are largest in "
            f"size, {what}{where}: means over {rows_of(told)}{out}."
        )

    @property
    def ranking_key(self) -> list[str]:
        """What the marks of the plot mean."""
        of_one = " or those of one correct answer" if self.ranking.answers else ""
        lines = [
            "Dots are means, lines their 95\u00a0% intervals.",
            f"A hollow dot is not told apart from 0, over all rows{of_one}, once all {self.ranking.compared:,} count.",
        ]
        if self.ranking.approximate:
            r = self.ranking.correlation
            agreed = f"; over all units Pearson\u2019s r is {r:.3f}" if r is not None and r == r else ""
            lines.append(f"Diamonds are effects by {self.ranking.approximate.replace('_', ' ')}{agreed}.")
        if self.ranking.answers:
            lines.append("The columns “right” take the rows of one correct answer alone.")
        return lines

    @property
    def proofs(self) -> list[tuple[str, HeldOut]]:
        """Of each store that has held-out rows, and what units they are of where there are several."""
        found = [(item.of, item.evidence.held_out) for item in self.gathered if item.evidence.held_out]
        return found if len(found) > 1 else [("", held) for _, held in found]

    def held_out_caption(self, held: HeldOut) -> str:
        """What was tried on held-out rows."""
        return (
            f"The claim on {held.rows:,} rows that did not choose the units, {percent(held.share_correct)} of which "
            "are answered correctly: how many answers change when the top units are changed together."
        )

    @property
    def dose_caption(self) -> str:
        """What the curve of a card shows."""
        what = objective_words(self.question)
        return f"{what.capitalize()} at multiples of the unit's activation; below, the share of correct answers"

    @property
    def cards(self) -> Cards:
        """All cards, each with the number of its store, in the order of the ranking."""
        places = {(item.store, item.units, item.unit): i for i, item in enumerate(self.ranking.units)}
        cards = [(item.store, card) for item in self.gathered for card in item.evidence.cards]
        return sorted(cards, key=lambda item: places.get((item[0], item[1].units, item[1].unit), len(places)))

    @property
    def steered(self) -> list[tuple[str, list[Continuation]]]:
        """Continued prompts by what was changed."""
        with_texts = [item for item in self.gathered if item.evidence.steering]
        return [
            (f"{item.of}: {told}" if len(with_texts) > 1 else told, list(items))
            for item in with_texts
            for told, items in groupby(item.evidence.steering, lambda each: each.told)
        ]

    def value_of(self, store: int) -> str | None:
        """What the units of a store are set to, where stores differ in that."""
        return set_to(self.stores.results[store].question["value"]) if self.several_values else None

    @cached_property
    def origin(self) -> Origin:
        """How it was made."""
        return origin(self.stores, self._path)


def evidence_html(evidence: Evidence) -> str:
    """Evidence for a notebook: short tables, and the cards as on a page, in a frame in which nothing runs."""
    parts = {heading: html_table(heading, lines) for heading, lines in _evidence_tables(evidence).items()}
    if evidence.cards:
        text = _ENVIRONMENT.get_template("cards.html").render(cards=evidence.cards, style=_style())
        frame = Markup('<iframe sandbox="{}" srcdoc="{}" style="width:100%;height:36rem;border:0"></iframe>')
        links = "allow-popups allow-popups-to-escape-sandbox"
        parts["Units"] += str(frame.format(links, text))
    return "".join(parts.values()) or NO_EVIDENCE


def evidence_text(evidence: Evidence) -> str:
    """The same tables for a terminal."""
    parts = []
    for heading, lines in _evidence_tables(evidence).items():
        table = pd.DataFrame([{name: visible(value) for name, value in line.items()} for line in lines])
        parts.append(f"{visible(heading)}\n{table.to_string(index=False)}")
    return "\n\n".join(parts) or NO_EVIDENCE


def _evidence_tables(evidence: Evidence) -> dict[str, list[dict[str, Any]]]:
    """Lines of short tables, by their headings."""
    tables: dict[str, list[dict[str, Any]]] = {}
    if evidence.held_out is not None:
        tables[f"{evidence.held_out.rows} held-out rows"] = [
            {
                "change": item.told,
                "answers changed": percent(item.flipped),
                "95\u00a0%": percents(item.low, item.high) if item.among else "",
            }
            for item in widened(evidence.held_out).changes
        ]
    if evidence.cards:
        tables["Units"] = [
            {
                "unit": card.name,
                "effect": number(card.mean_effect),
                "95\u00a0%": interval(card.low, card.high),
                "active": percent(card.share_active),
                "promotes": ", ".join(map(repr, _gist(card))),
                "suppresses": ", ".join(map(repr, _gist(card, suppressed=True))),
                "strongest at": "; ".join(_strongest(prompt) for prompt in card.prompts[:GIST]),
                "answers changed": len(card.changed),
            }
            for card in evidence.cards
        ]
    for told, items in groupby(evidence.steering, lambda item: item.told):
        tables[f"Continued with {told}"] = [
            {"prompt": item.prompt, "as it is": item.plain, "changed": item.steered} for item in items
        ]
    return tables


def _style() -> Markup:
    return Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))  # noqa: S704 - of this package


def _gathered(number: int, effects: Effects) -> Gathered:
    found = Evidence.of(effects.store)
    held_out = None if found.held_out is None else widened(found.held_out)
    told = effects.question
    return Gathered(number, f"{units_of(told)}, each {set_to(told['value'])}", evolve(found, held_out=held_out))


def _circuit(number: int, effects: Effects) -> CircuitView:
    told = effects.question
    of, what = f"{units_of(told)}, each {set_to(told['value'])}", objective_words(told)
    return CircuitView(number, of, Circuit.of(effects.store), what, str(told["unit"]))


def _gist(card: Card, *, suppressed: bool = False) -> list[str]:
    direct, total = (
        (card.suppressed_direct, card.suppressed_total) if suppressed else (card.promoted_direct, card.promoted_total)
    )
    return [item.token for item in (direct or total)[:GIST]]


def _strongest(prompt: ShadedPrompt) -> str:
    """The token of a prompt at which a unit is strongest, in double brackets, after some of those before it."""
    at = max(range(len(prompt.tokens)), key=lambda i: abs(prompt.activations[i]))
    token = prompt.tokens[at]
    space = " " * (len(token) - len(token.lstrip(" ")))
    return f"{''.join(prompt.tokens[max(0, at - BEFORE) : at])}{space}[[{token.strip(' ')}]]"


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=visible,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {item.__name__: item for item in (interval, number, percent, web, window)}
_ENVIRONMENT.globals |= {"most_changed": MOST_CHANGED, "histogram": drawing.histogram, "dose": drawing.dose}
_ENVIRONMENT.globals["curves"] = curves
