"""Axes, histograms and curves: coordinates, and small drawings in SVG that need no script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from attrs import frozen
from markupsafe import Markup, escape

from interpretune.evidence import Dose
from interpretune.reports.page.text import number, percent

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 320, 130, 42, 20, 12


@frozen
class Scale:
    """An axis.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        ticks: Round numbers on it.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float], n_ticks: int = 4) -> Scale:
        """An axis that holds finite values; those that are not finite are passed over."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        if low == high:
            low, high = low - (abs(low) or 1), high + (abs(high) or 1)
        step = 10 ** math.floor(math.log10((high - low) / n_ticks))
        step *= next((m for m in (1, 2, 5) if (high - low) / (m * step) <= n_ticks), 10)
        ticks = [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        return cls(low, high, tuple(ticks))

    def at(self, value: float) -> float:
        """Place of a value, in percent of the axis."""
        return round(100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low), 2)

    def width(self, low: float, high: float) -> float:
        """Length of an interval, in percent of the axis."""
        return round(self.at(high) - self.at(low), 2)


def histogram(edges: Sequence[float], counts: Sequence[int]) -> Markup:
    """Bars with heights on a logarithmic scale."""
    across = Scale.of(edges, 4)
    most = max(counts, default=0)
    base, wide = HEIGHT - BOTTOM, WIDTH - LEFT
    drawn = [Markup('<line class="rule" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(LEFT, base, WIDTH, base)]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if not count:
            continue
        height = (base - TOP) * (math.log1p(count) / math.log1p(most))
        x, width = LEFT + wide * across.at(low) / 100, wide * across.width(low, high) / 100
        drawn.append(
            Markup(
                '<rect class="fill" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
            ).format(
                x, base - height, max(width - 1, 0.8), height, f"{number(low)} to {number(high)}: {count:,} tokens"
            )
        )
    drawn += [text_at(LEFT + wide * across.at(tick) / 100, HEIGHT - 6, number(tick), "middle") for tick in across.ticks]
    drawn += [text_at(LEFT - 6, TOP + 4, f"{most:,}", "end"), text_at(LEFT - 6, base, "0", "end")]
    return svg(drawn, f"Histogram of activations: {sum(counts):,} tokens, at most {most:,} in a bin")


def dose(doses: Sequence[Dose]) -> Markup:
    """The objective at multiples of a unit's activation, with the share of correct answers below."""
    up = Scale.of((item.objective for item in doses), 3)
    base, wide = HEIGHT - BOTTOM - 12, WIDTH - LEFT - 16
    places = [
        (LEFT + 8 + wide * i / max(len(doses) - 1, 1), base - (base - TOP) * up.at(item.objective) / 100)
        for i, item in enumerate(doses)
    ]
    drawn = []
    for tick in up.ticks:
        y = base - (base - TOP) * up.at(tick) / 100
        drawn.append(Markup('<line class="rule" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>').format(LEFT, y, WIDTH, y))
        drawn.append(text_at(LEFT - 6, y + 4, number(tick), "end"))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn.append(Markup('<polyline class="stroke" points="{}"/>').format(path))
    for (x, y), item in zip(places, doses, strict=True):
        told = f"{number(item.factor)} times: {number(item.objective)}, {percent(item.share_correct)} correct"
        drawn.append(
            Markup('<circle class="mark" cx="{:.1f}" cy="{:.1f}" r="3.2"><title>{}</title></circle>').format(x, y, told)
        )
        drawn.append(text_at(x, HEIGHT - 18, f"\u00d7{number(item.factor)}", "middle"))
        if not math.isnan(item.share_correct):
            drawn.append(text_at(x, HEIGHT - 4, percent(item.share_correct), "middle"))
    told = "; ".join(f"{number(item.factor)} times: {number(item.objective)}" for item in doses)
    return svg(drawn, f"Objective by multiples of the activation: {told}")


def text_at(x: float, y: float, text: str, anchor: str) -> Markup:
    """A text at a place; ``anchor`` says which end of it."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def svg(drawn: Sequence[Markup], told: str, width: int = WIDTH, height: int = HEIGHT) -> Markup:
    """A drawing with what it shows in words."""
    inside = Markup("").join(drawn)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, escape(told), inside
    )
