"""Effects on latents, across positions, in sets, and curves, beside plain loops; and methods beside exact numbers.

Every plain loop runs whole forwards of ``LINES`` rows, each row with changes of its own and one position unembedded:
what a careful loop does. It runs a sample of them and is extrapolated. Seconds are told by the clock and by processors
(all threads together). The table of methods is made by ``benchmarks.judged``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from attrs import frozen
from tabulate import tabulate
from torch import Tensor

import interpretune as it
from benchmarks.clock import Clock
from benchmarks.command import OUT, measured, options_of
from benchmarks.judged import COLUMNS, judged
from benchmarks.plain_loops import zeroed_forward
from benchmarks.questions import Asked
from benchmarks.workload import Workload, tokenized
from interpretune.circuits import NodeEffects, faithfulness, pair_effects
from interpretune.questions.units import UnitSet, unit_sets
from interpretune.tasks import find_task

LINES = 32
"""Rows of a whole forward of the plain loop."""
STRONGEST = 50
"""Latents of which all pairs are changed."""
FIGURES = {
    "rows": "rows of the task",
    "changed": "changed rows",
    "s": "one call (s)",
    "processor_s": "one call (s of processors)",
    "loop_s": "loop (s)",
    "loop_processor_s": "loop (s of processors)",
    "ratio": "ratio",
    "processor_ratio": "ratio by seconds of processors",
    "max_abs_error": "largest error",
    "max_effect": "largest effect",
}
MEASURED = {
    "latents": "effects on latents",
    "positions": "across positions",
    "pairs": f"pairs of {STRONGEST}",
    "curves": "faithfulness curves",
}
COSTS = {
    "on_latents_cost": "effects on latents, in seconds of the ablation that they come from",
    "pairs_cost": "pairs of one row, in seconds of ablating all alive latents of all rows",
    "pairs_cost_of_point": "the same, in seconds of ablating those of that row",
}


@frozen(eq=False)
class Loop:
    """The plain loop over changes of rows.

    Attributes:
        asked: The rows.
        sets: Unit sets that are changed, spliced in together.
        record: Activation names that are noted.
    """

    asked: Asked
    sets: Sequence[UnitSet]
    record: Sequence[str] = ()

    def run(self, rows: Sequence[int], changed: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """One forward.

        Args:
            rows: The row of each line.
            changed: Line, position in the prompt (-1: the last) and latent of each zero, ``[k, 3]`` by activation name.

        Returns:
            The logit difference of each line, what is noted ``[lines, slots, d]``, and padding of each line.
        """
        texts = [str(row.prompt) for row in self.asked.rows]
        device = self.asked.answers.device
        which = torch.tensor(rows, device=device)
        inputs = tokenized(self.asked.tokenizer, texts, "left", device).select(which)
        padding = inputs.tokens.shape[1] - inputs.attention_mask.sum(-1)
        moved = {}
        for name, at in changed.items():
            slots = torch.where(at[:, 1] < 0, inputs.tokens.shape[1] + at[:, 1], at[:, 1] + padding[at[:, 0]])
            moved[name] = torch.stack([at[:, 0], slots, at[:, 2]], dim=-1)
        models = [item.dictionary for item in self.sets]
        logits, seen = zeroed_forward(self.asked.work.backend, inputs, models, moved, self.record)
        right, wrong = logits.gather(-1, self.asked.answers[which]).unbind(-1)
        return right - wrong, seen, padding

    def clean(self, rows: Sequence[int]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The same with nothing changed."""
        return self.run(rows, {})


def ratios(clock: Clock, call: str, loop: str, rows: int, lines: int = LINES) -> dict[str, Any]:
    """Seconds of a call, and of a loop over all its changed rows by the median of its forwards of ``lines`` each."""
    told: dict[str, Any] = {"changed": rows}
    for prefix, times in (("", clock.times), ("processor_", clock.processor)):
        spent, one = statistics.median(times[call]), statistics.median(times[loop])
        told |= {f"{prefix}s": spent, f"loop_{prefix}s": one * rows / lines}
        told[f"{prefix}ratio"] = one * rows / lines / spent
    return told


def measure_effects_on(asked: Asked, n: int, options: argparse.Namespace, **where: Any) -> dict[str, Any]:
    """Effects of the lower dictionary's latents on the upper one's over the first rows, beside the loop."""
    work, tolerance = asked.work, 1e-3
    lower, upper = work.dictionaries
    clock = Clock(work.backend.model_device)
    rows = asked.rows[:n]
    told = {"row_budget": work.row_budget}

    def on_latents() -> NodeEffects:
        return it.effects_on(
            work.backend, asked.tokenizer, rows, units=lower, on=upper, tolerance=tolerance, **told, **where
        )

    def ablation() -> it.Effects:
        both = [lower, it.Latents(upper, only=[0])]  # spliced in together, as they are for effects on latents
        at = {name: value for name, value in where.items() if name == "positions"}
        return it.effects(work.backend, asked.tokenizer, rows, units=both, **told, **at)

    it.effects_on(work.backend, asked.tokenizer, rows[:1], units=lower, on=upper, **where)  # checks itself once
    for _ in range(options.turns):
        clock.run("ablation", ablation)
        found = clock.run("call", on_latents)
    nodes, table = found.on_objective.to_pandas(), found.to_pandas()
    effects = dict(iter(table.groupby(["row", "position", "unit"])))
    loop = Loop(asked, unit_sets([lower, upper], work.backend), [unit_sets(upper, work.backend)[0].activation_name])
    source = loop.sets[0].activation_name
    draw, error = torch.Generator().manual_seed(0), 0.0
    for _ in range(options.sample):
        part = nodes.iloc[torch.randint(len(nodes), (LINES,), generator=draw).tolist()]
        lines = part.row.tolist()
        at = torch.tensor([[i, *pair] for i, pair in enumerate(zip(part.position, part.unit, strict=True))])
        changed, seen, padding = clock.run("loop", lambda: loop.run(lines, {source: at.to(asked.answers.device)}))  # noqa: B023
        clean, before, _ = loop.clean(lines)
        error = max(error, np.abs((clean - changed).cpu().numpy() - part.effect.to_numpy()).max())
        moved = (before[loop.record[0]] - seen[loop.record[0]]).cpu()
        for i, node in enumerate(part.itertuples()):
            got = torch.zeros_like(moved[i])
            mine = effects.get((node.row, node.position, node.unit), table[:0])
            slots = torch.tensor(mine.target_position.to_numpy()) + int(padding[i])
            got[slots, torch.tensor(mine.target_unit.to_numpy())] = torch.tensor(mine.effect.to_numpy()).to(got)
            wanted = moved[i] if "at" in where else moved[i] * (torch.arange(len(got)) == len(got) - 1).unsqueeze(-1)
            missed = torch.where(got == 0, (wanted.abs() - tolerance).clamp(min=0), (wanted - got).abs())
            error = max(error, missed.max().item())
    cost = {p: statistics.median(t["call"]) / statistics.median(t["ablation"]) for p, t in _both(clock).items()}
    return {
        **ratios(clock, "call", "loop", len(nodes)),
        "max_abs_error": float(error),
        "max_effect": float(table.effect.abs().max()),
        "effects": len(table),
        "rows": n,
        "cost": cost,
    }


def measure_pairs(asked: Asked, options: argparse.Namespace) -> dict[str, Any]:
    """All pairs of the strongest latents at the answer position of the first row, beside ablations and the loop."""
    work = asked.work
    clock = Clock(work.backend.model_device)
    one = asked.effects(work.dictionaries, 1)
    for _ in range(options.turns):
        one = clock.run("point", lambda: asked.effects(work.dictionaries, 1))
        clock.run("all", lambda: asked.effects(work.dictionaries, len(asked.rows)))
        pairs = clock.run("call", lambda: pair_effects(one, STRONGEST))  # noqa: B023
    sets = unit_sets(work.dictionaries, work.backend)
    loop, top = Loop(asked, sets), one.top(STRONGEST)
    names = {item.name: item.activation_name for item in sets}
    where = [(names[units], int(unit)) for units, unit in zip(top.units, top.unit, strict=True)]
    both = list(zip(*np.triu_indices(len(where), 1), strict=True))
    draw, error = torch.Generator().manual_seed(0), 0.0
    for _ in range(options.sample):
        chosen = torch.randint(len(both), (LINES,), generator=draw).tolist()
        changed: dict[str, list[list[int]]] = {}
        for line, pair in enumerate(chosen):
            for name, unit in (where[i] for i in both[pair]):
                changed.setdefault(name, []).append([line, -1, unit])
        at = {name: torch.tensor(items, device=asked.answers.device) for name, items in changed.items()}
        found = clock.run("loop", lambda: loop.run([0] * LINES, at))[0]  # noqa: B023
        effect = (loop.clean([0])[0] - found).cpu().numpy()
        error = max(error, np.abs(effect - pairs.together[chosen, 0]).max())
    times = {p: {name: statistics.median(item) for name, item in t.items()} for p, t in _both(clock).items()}
    return {
        **ratios(clock, "call", "loop", len(both) + len(where)),
        "max_abs_error": float(error),
        "max_effect": float(np.abs(pairs.together).max()),
        "rows": 1,
        "alive_at_the_point": len(one.to_pandas()),
        "cost": {p: t["call"] / t["all"] for p, t in times.items()},
        "cost_of_point": {p: t["call"] / t["point"] for p, t in times.items()},
    }


def measure_curves(asked: Asked, options: argparse.Namespace) -> dict[str, Any]:
    """Faithfulness of rankings of all heads, gradient effects included, beside the loop."""
    work = asked.work
    clock, held_out = Clock(work.backend.model_device), find_task("agreement").training(len(asked.rows))
    heads = asked.effects([it.Heads()], len(asked.rows))
    curves = clock.run("call", lambda: faithfulness(heads, held_out, rankings=["exact", "gradient"], draws=2))
    loop = Loop(Asked.of(work, held_out), unit_sets(it.Heads(), work.backend))
    sums = heads.to_pandas().groupby(["units", "unit"], observed=True).effect.sum()
    scores = {(item.name, unit): sums.get((item.name, unit), 0.0) for item in loop.sets for unit in item.ids.tolist()}
    order = [list(scores)[i] for i in np.argsort(-np.abs(list(scores.values())), kind="stable")]
    by_name = {item.name: item for item in loop.sets}
    draw, error = torch.Generator().manual_seed(0), 0.0
    for _ in range(options.sample):
        lines = torch.randint(len(held_out), (LINES,), generator=draw).tolist()
        sizes = torch.randint(len(curves.sizes), (LINES,), generator=draw).tolist()
        changed: dict[str, list[Tensor]] = {}
        for line, size in enumerate(sizes):
            for name, unit in order[curves.sizes[size] :]:
                members = by_name[name].members[unit]
                at = torch.stack([torch.full_like(members, line), torch.full_like(members, -1), members], dim=-1)
                changed.setdefault(by_name[name].activation_name, []).append(at)
        zeros = {name: torch.cat(items).to(asked.answers.device) for name, items in changed.items()}
        found = clock.run("loop", lambda: loop.run(lines, zeros))[0].cpu().numpy()  # noqa: B023
        error = max(error, np.abs(found - curves.kept[0, sizes, lines]).max())
    circuits = 2 * (2 + 2) * len(curves.sizes)  # kept and left out, by two rankings and two random ones
    return {
        **ratios(clock, "call", "loop", circuits * len(held_out)),
        "max_abs_error": float(error),
        "max_effect": float(np.abs(curves.model - curves.nothing).max()),
        "rows": len(held_out),
    }


def _both(clock: Clock) -> dict[str, dict[str, list[float]]]:
    return {"s": clock.times, "processor_s": clock.processor}


def measure(work: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """All figures: ratios, then the table of methods."""
    asked = Asked.of(work, find_task("agreement").held_out(options.rows))
    short = max(1, options.rows // 4)
    found: dict[str, Any] = {"rows": options.rows, "rows_across_positions": short}
    for name, work_on in {
        "latents": lambda: measure_effects_on(asked, options.rows, options),
        "positions": lambda: measure_effects_on(asked, short, options, positions="each", at="each"),
        "pairs": lambda: measure_pairs(asked, options),
        "curves": lambda: measure_curves(asked, options),
    }.items():
        if name in options.parts:
            found[name] = work_on()
            print(name, found[name], flush=True)
    if "methods" in options.parts:
        found["methods"] = judged(work, options)
    return found


def tables(found: Mapping[str, Any]) -> str:
    """The tables of ``docs/benchmarks.md``."""
    names = [name for name in MEASURED if name in found]
    lines = [[told, *(_told(found[name][key]) for name in names)] for key, told in FIGURES.items()]
    parts = [tabulate(lines, ["", *(MEASURED[name] for name in names)], "github", disable_numparse=True)]
    costs = [("on_latents_cost", "latents", "cost"), ("pairs_cost", "pairs", "cost")]
    costs.append(("pairs_cost_of_point", "pairs", "cost_of_point"))
    shown = [[COSTS[key], *found[name][part].values()] for key, name, part in costs if name in found]
    parts.append(tabulate(shown, ["cost", "by seconds", "by seconds of processors"], "github", floatfmt=".2f"))
    if "methods" in found:
        frame = pd.DataFrame(found["methods"])[list(COLUMNS)]
        frame = frame.astype({"nodes_for_80": "Int64"}).astype(object).where(frame.notna(), None)
        parts.append(tabulate(frame.values.tolist(), list(COLUMNS.values()), "github", floatfmt=".2f", missingval=""))
    return "\n\n".join(parts)


def _told(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.3g}"


def main() -> None:
    """Run the benchmark, print its tables and write ``benchmarks/out/circuits.json``."""
    parser = options_of(__doc__, ["blocks.10.hook_resid_post", "blocks.15.hook_resid_post"], width=4096, alive=32)
    parser.add_argument("--rows", type=int, default=16, help="rows of a task (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=2, help="forwards of a loop (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=2, help="calls that are timed (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", default=["agreement", "ioi", "greater_than"])
    parser.add_argument("--layer", type=int, default=25, help="whose neurons are judged (default: %(default)s)")
    parser.add_argument("--component-rows", type=int, default=3, help="rows with patched components (%(default)s)")
    parser.add_argument("--graph-rows", type=int, default=4, help="rows with attribution graphs (default: %(default)s)")
    parser.add_argument("--graph-layers", type=int, default=4, help="layers with transcoders (default: %(default)s)")
    parser.add_argument("--graph-prompts", type=int, default=96, help="of a task, to train them (default: %(default)s)")
    parser.add_argument("--graph-steps", type=int, default=300, help="of their training (default: %(default)s)")
    parser.add_argument("--graph-width", type=int, default=1024, help="latents of a transcoder (default: %(default)s)")
    parser.add_argument("--graph-alive", type=int, default=32, help="of these alive at a token (default: %(default)s)")
    parser.add_argument("--graph-nodes", type=int, default=1200, help="most latents of a graph (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", default=[*MEASURED, "methods"], choices=[*MEASURED, "methods"])
    parser.add_argument("--tables", action="store_true", help="print the tables of the last run, measure nothing")
    if not parser.parse_known_args()[0].tables:
        measured("circuits", parser, measure, {"rows": "rows"})
    print(tables(json.loads((OUT / "circuits.json").read_text(encoding="utf-8"))[0]))


if __name__ == "__main__":
    main()
