"""Curves of faithfulness as a small drawing in SVG: a line for each ranking with its interval."""

from __future__ import annotations

from markupsafe import Markup

from interpretune.circuits import Faithfulness
from interpretune.reports.page.drawing import Scale, svg, text_at
from interpretune.reports.page.text import interval, number, visible

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 440, 220, 44, 34, 12
MOST_LABELS = 9
REACH = 0.5
"""How far intervals reach beyond 0 and 1 in the drawing."""


def curves(found: Faithfulness) -> Markup:
    """Faithfulness over the number of units kept; sizes stand side by side at equal distances."""
    told = found.to_pandas().assign(ranking=lambda frame: frame.ranking.map(visible))
    ends = [*told.low.clip(-REACH, 1 + REACH), *told.high.clip(-REACH, 1 + REACH)]
    up = Scale.of([0.0, 1.0, *told.faithfulness.clip(-REACH, 1 + REACH), *ends], 5)
    base, wide, n = HEIGHT - BOTTOM, WIDTH - LEFT - 14, len(found.sizes)

    def x(i: int) -> float:
        return LEFT + 6 + wide * (i / (n - 1) if n > 1 else 0.5)

    def y(value: float) -> float:
        return base - (base - TOP) * up.at(value) / 100

    drawn = []
    for tick in up.ticks:
        line = Markup('<line class="rule" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>')
        drawn += [line.format(LEFT, y(tick), WIDTH, y(tick)), text_at(LEFT - 6, y(tick) + 4, number(tick), "end")]
    step = -(-n // MOST_LABELS)
    drawn += [text_at(x(i), HEIGHT - 18, f"{size:,}", "middle") for i, size in enumerate(found.sizes) if not i % step]
    drawn.append(text_at(LEFT + wide / 2, HEIGHT - 3, "units kept", "middle"))
    for number_, (name, part) in reversed([*enumerate(told.groupby("ranking", sort=False))]):
        lines = list(part.itertuples(index=False))
        sure = [(i, line) for i, line in enumerate(lines) if line.low == line.low]
        band = [f"{x(i):.1f},{y(line.high):.1f}" for i, line in sure]
        band += [f"{x(i):.1f},{y(line.low):.1f}" for i, line in reversed(sure)]
        points = " ".join(f"{x(i):.1f},{y(line.faithfulness):.1f}" for i, line in enumerate(lines))
        marks = [
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>').format(
                x(i),
                y(line.faithfulness),
                f"{name}, {line.nodes:,} units: {number(line.faithfulness)} ({interval(line.low, line.high)})",
            )
            for i, line in enumerate(lines)
        ]
        drawn.append(
            Markup('<g class="curve c{}"><polygon points="{}"/><polyline points="{}"/>{}</g>').format(
                number_ % 4, " ".join(band), points, Markup("").join(marks)
            )
        )
    words = "; ".join(
        f"{name}: {', '.join(f'{line.nodes} units {number(line.faithfulness)}' for line in part.itertuples())}"
        for name, part in told.groupby("ranking", sort=False)
    )
    return svg(drawn, f"Faithfulness by the number of units kept: {words}", WIDTH, HEIGHT)
