"""Exact effects of neurons, of all heads and of two dictionaries on a task, beside plain loops.

Each is one call of ``effects`` over rows of the task ``agreement``. In the same process, right after it, the plain loop
runs for some units, one forward of all rows for each, and is extrapolated to all that have effects. Seconds are told by
the clock and by processors (all threads together): on a busy machine only the second say what a call costs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

import interpretune as it
from benchmarks.clock import Clock, flops_per_second
from benchmarks.command import measured, options_of
from benchmarks.plain_loops import ablate_in_loop
from benchmarks.workload import Workload, tokenized
from interpretune.questions import PromptRow, UnitSet
from interpretune.questions.units import unit_sets
from interpretune.tasks import find_task

BATCH = 8
"""Rows of a forward of the plain loop, as of a call."""
FIGURES = {
    "units": "units that have effects",
    "effects": "effects",
    "s": "one call (s)",
    "processor_s": "one call (s of processors)",
    "loop_s": "loop (s)",
    "loop_processor_s": "loop (s of processors)",
    "ratio": "ratio",
    "processor_ratio": "ratio by seconds of processors",
    "bound_s": "its FLOPs as matrix products (s of processors)",
    "max_abs_error": "largest error",
    "max_effect": "largest effect",
}


@frozen(eq=False)
class Asked:
    """Rows of the task, their answers' ids ``[n, 2]``, and who is asked."""

    work: Workload
    tokenizer: Any
    rows: Sequence[PromptRow]
    answers: Tensor

    @classmethod
    def of(cls, work: Workload, rows: Sequence[PromptRow]) -> Asked:
        """Rows with the first tokens of their answers, the correct one first."""
        model: Any = work.backend.model
        tokenizer: Any = AutoTokenizer.from_pretrained(model.config._name_or_path)
        ids = [
            [tokenizer.encode(row.answers[i], add_special_tokens=False)[0] for i in (row.correct, 1 - row.correct)]
            for row in rows
        ]
        return cls(work, tokenizer, rows, torch.tensor(ids, device=work.backend.model_device))

    def effects(self, units: Any, n: int) -> it.Effects:
        """One call over the first rows."""
        budget = self.work.row_budget
        return it.effects(self.work.backend, self.tokenizer, self.rows[:n], units=units, row_budget=budget)

    def differences(self, group: Sequence[UnitSet], item: UnitSet, members: Tensor) -> Tensor:
        """The plain loop: the logit difference of each row with latents at zero, ``[n]``."""
        found = []
        for start in range(0, len(self.rows), BATCH):
            texts = [str(row.prompt) for row in self.rows[start : start + BATCH]]
            inputs = tokenized(self.tokenizer, texts, "left", self.answers.device)
            models = [other.dictionary for other in group]
            logits = ablate_in_loop(self.work.backend, inputs, models, item.activation_name, members, narrow=False)
            right, wrong = logits.gather(-1, self.answers[start : start + BATCH]).unbind(-1)
            found.append(right - wrong)
        return torch.cat(found)


def measure(work: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of each question."""
    rows = find_task("agreement").held_out(options.rows)
    asked = Asked.of(work, rows)
    questions: dict[str, list[Any]] = {f"neurons of layer {layer}": [it.Neurons(layer)] for layer in options.layers}
    questions |= {"all heads": [it.Heads()], "two dictionaries": work.dictionaries}
    found: dict[str, Any] = {"rows": len(rows)}
    for title, units in questions.items():
        figures = measure_question(asked, units, options.sample)
        print(title, figures, flush=True)
        found |= {f"{title}: {name}": value for name, value in figures.items()}
    return found


def measure_question(asked: Asked, units: Any, sample: int) -> dict[str, Any]:
    """One call, and then the plain loop for some units."""
    backend = asked.work.backend
    device, dtype = backend.model_device, next(backend.model.parameters()).dtype
    clock, sets = Clock(device), unit_sets(units, backend)
    draw = torch.Generator().manual_seed(0)

    def loop(alive: Sequence[tuple[UnitSet, int]]) -> float:
        """Runs the loop for some of the units; the largest error of the call's effects."""
        worst = 0.0
        for item, unit in (alive[int(i)] for i in torch.randperm(len(alive), generator=draw)[:sample]):
            group = sets if item.kind == "latent" else [item]
            members = item.members[item.ids == unit][0]
            changed = clock.run("loop", lambda: asked.differences(group, item, members))  # noqa: B023
            clean = asked.differences(group, item, members[:0])
            mine = table[(table.units == item.name) & (table.unit == unit)].set_index("row").effect
            wanted = (clean - changed).cpu()
            worst = max(worst, *(abs(float(mine.get(row, 0.0)) - wanted[row].item()) for row in range(len(wanted))))
        return worst

    with FlopCounterMode(display=False) as few:
        table = asked.effects(units, 1).to_pandas()
    with FlopCounterMode(display=False) as more:
        asked.effects(units, 3)
    flops = (more.get_total_flops() - few.get_total_flops()) / 2 * len(asked.rows)
    speed = [flops_per_second(device, dtype, processor=True)]
    result = clock.run("call", lambda: asked.effects(units, len(asked.rows)))
    speed.append(flops_per_second(device, dtype, processor=True))
    table = result.to_pandas()
    by_name = {item.name: item for item in sets}
    alive = [(by_name[name], int(unit)) for name, unit in table[["units", "unit"]].drop_duplicates().itertuples(False)]
    error = loop(alive)
    each = {name: statistics.median(times["loop"]) for name, times in (("s", clock.times), ("p", clock.processor))}
    call = {"s": clock.times["call"][0], "p": clock.processor["call"][0]}
    return {
        "units": len(alive),
        "effects": len(table),
        "share_correct": result.share_correct,
        "s": call["s"],
        "processor_s": call["p"],
        "loop_s": each["s"] * len(alive),
        "loop_processor_s": each["p"] * len(alive),
        "ratio": each["s"] * len(alive) / call["s"],
        "processor_ratio": each["p"] * len(alive) / call["p"],
        "bound_s": flops / statistics.mean(speed),
        "max_abs_error": error,
        "max_effect": float(table.effect.abs().max()),
    }


def main() -> None:
    """Run the benchmark, print a table and write ``benchmarks/out/questions.json``."""
    parser = options_of(__doc__, ["blocks.10.hook_resid_post", "blocks.15.hook_resid_post"], width=4096, alive=32)
    parser.add_argument("--layers", nargs="*", type=int, default=[15, 25], help="whose neurons (default: 15 25)")
    parser.add_argument("--rows", type=int, default=64, help="rows of the task (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=5, help="units in the loop (default: %(default)s)")
    asked = parser.parse_known_args()[0]
    titles = [*(f"neurons of layer {layer}" for layer in asked.layers), "all heads", "two dictionaries"]
    shown = {f"{title}: {name}": f"{title}: {told}" for title in titles for name, told in FIGURES.items()}
    measured("questions", parser, measure, shown)


if __name__ == "__main__":
    main()
