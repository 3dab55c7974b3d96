"""What a comparison of two stores says."""

from __future__ import annotations

import math

import pyarrow as pa
from attrs import asdict, frozen
from tabulate import tabulate

from interpretune.analysis.direction import Direction
from interpretune.store.fields import Per
from interpretune.system.html_table import html_table

SHOWN = 5
"""Rows of each table of differences that are printed."""
ALL_HOOKS = "all"


@frozen
class Agreement:
    """One measure of how far two stores agree.

    Attributes:
        over: What its pairs are. ``latents``: totals of the latents over the examples in common. ``within examples``:
            latents of one example, and the measure is the mean over those examples in which it is defined.
            ``examples``: the examples in common.
        hook: Activation name, or ``all``.
        measure: ``pearson``, ``spearman``, ``top-k overlap`` or ``sign agreement``.
        value: The measure; NaN where it is undefined, as a correlation with a constant is.
        low: Lower end of the bootstrap interval, over examples; NaN with fewer than two examples.
        high: Upper end.
        count: Number of pairs; ``within examples`` the number of examples in which the measure is defined.
    """

    over: str
    hook: str
    measure: str
    value: float
    low: float
    high: float
    count: int


@frozen(eq=False)
class StoreComparison:
    """How far two stores agree on one field, over the examples that both have.

    A latent without an entry in an example counts as 0 there. Pairs in which both numbers are 0 say nothing and are
    left out, as are those with a number that is not finite.

    Attributes:
        field: Name of the field, or ``left against right`` where the names differ.
        per: What the field has one value for.
        about: What the left store says of the field, with its unit.
        names: What to call the left and the right store.
        examples: Number of examples in both.
        only_left: Number of examples only in the left store; they are left out.
        only_right: The same for the right store.
        hooks_apart: Latent models in one store only; they are left out.
        pairs: Number of pairs with a number other than 0 on some side.
        pairs_left: Those of them with 0, or no entry, on the right.
        pairs_right: Those of them with 0, or no entry, on the left.
        not_finite: Number of pairs that were left out because a number is not finite.
        direction: The answer towards which both count.
        agreement: The measures.
        top_k: How many the overlap looks at.
        confidence: Share of the resamples that an interval holds.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.
        latents: For fields per latent the totals, ordered by the size of the difference: hook, latent, left, right,
            difference (left less right), examples_left and examples_right (with a number other than 0).
        largest: The largest single differences: example, hook and latent where the field has them, left, right,
            difference.
    """

    field: str
    per: Per
    about: str
    names: tuple[str, str]
    examples: int
    only_left: int
    only_right: int
    hooks_apart: tuple[str, ...]
    pairs: int
    pairs_left: int
    pairs_right: int
    not_finite: int
    direction: Direction
    agreement: tuple[Agreement, ...]
    top_k: int
    confidence: float
    resamples: int
    seed: int
    latents: pa.Table | None
    largest: pa.Table

    def get(self, measure: str, over: str | None = None, hook: str = ALL_HOOKS) -> Agreement:
        """One of the measures.

        Raises:
            KeyError: There is none such; the message lists those that there are.
        """
        over = over or self.agreement[0].over
        for item in self.agreement:
            if (item.measure, item.over, item.hook) == (measure, over, hook):
                return item
        there = "; ".join(f"{item.measure} over {item.over} at {item.hook}" for item in self.agreement)
        raise KeyError(f"No {measure} over {over} at {hook}. There are: {there}.")

    def to_table(self) -> pa.Table:
        """The measures of agreement, a row each."""
        return pa.Table.from_pylist([asdict(item) for item in self.agreement])

    def _repr_html_(self) -> str:
        title = f"{self.field} per {self.per}: {self.names[0]} against {self.names[1]}, {self.examples:,} examples"
        return html_table(title, [asdict(item) for item in self.agreement])

    def __str__(self) -> str:
        left, right = self.names
        parts = [
            f"{self.field}{self.direction.suffix} per {self.per}: {left} against {right}"
            + (f" ({self.about})" if self.about else ""),
            f"{self.examples:,} examples in both; {self.only_left:,} only in {left}, {self.only_right:,} in {right}.",
            f"{self.pairs:,} pairs: {self.pairs_left:,} are 0 in {right}, {self.pairs_right:,} are 0 in {left}"
            + (f"; {self.not_finite:,} more left out because they are not finite." if self.not_finite else "."),
        ]
        if self.hooks_apart:
            parts.append(f"Left out, as only one of them has it: {', '.join(self.hooks_apart)}.")
        parts += ["", self._agreement()]
        for title, table in (("totals", self.latents), ("single numbers", self.largest)):
            if table is not None and table.num_rows:
                parts += ["", f"Largest differences of {title} ({left} less {right}):", self._shown(table)]
        return "\n".join(parts)

    def _agreement(self) -> str:
        measures = list(dict.fromkeys(item.measure for item in self.agreement))
        rows: dict[tuple[str, str], list[str]] = {}
        for item in self.agreement:
            rows.setdefault((item.over, item.hook), []).append(_interval(item))
        heads = ["over", "hook", *(f"top-{self.top_k} overlap" if m == "top-k overlap" else m for m in measures)]
        note = f"In brackets: {self.confidence:.0%} intervals of {self.resamples:,} resamples of the examples."
        body = [[*key, *cells] for key, cells in rows.items()]
        return tabulate(body, headers=heads, tablefmt="grid", disable_numparse=True) + (
            f"\n{note}" if self.resamples and self.examples > 1 else ""
        )

    def _shown(self, table: pa.Table) -> str:
        left, right = self.names
        heads = {
            "left": left,
            "right": right,
            "examples_left": f"examples {left}",
            "examples_right": f"examples {right}",
        }
        rows = [list(row.values()) for row in table.slice(0, SHOWN).to_pylist()]
        return tabulate(
            rows, headers=[heads.get(name, name) for name in table.column_names], tablefmt="grid", floatfmt=".4f"
        )


def _interval(item: Agreement) -> str:
    if math.isnan(item.value):
        return "undefined"
    if math.isnan(item.low):
        return f"{item.value:.3f}"
    return f"{item.value:.3f} [{item.low:.3f}, {item.high:.3f}]"
