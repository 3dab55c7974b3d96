"""Exact ablation at every position of short prompts, beside whole forwards.

Every alive latent of one dictionary is ablated alone at every token, and the answers' logits are read. Rows that rerun
the tokens after a change take turns with whole forwards, which are batched as the plain loop batches them. Whole
forwards run a sample of the rows in each turn and are extrapolated to all.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from attrs import evolve

from benchmarks.clock import Clock
from benchmarks.command import measured, options_of
from benchmarks.workload import Workload, alive_rows
from interpretune.analysis import LatentRows, ModelInputs, Points, ablate_from
from interpretune.replay.budgets import naive_budget
from interpretune.replay.prefill import Prefill

SHOWN = {
    "backend": "backend",
    "rows": "rows",
    "naive_s": "whole forwards (s)",
    "suffix_s": "suffix rows (s)",
    "prefill_s": "prefill (s)",
    "ratio": "ratio",
    "ratios": "ratios of the turns",
    "max_abs_error": "largest error",
    "max_effect": "largest effect",
}


def measure(work: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways for all rows, in turns."""
    cut = ModelInputs(work.inputs.tokens[:, : options.tokens], work.inputs.attention_mask[:, : options.tokens])
    work = evolve(work, inputs=cut)
    clock = Clock(work.backend.model_device)
    where = Points(*work.inputs.attention_mask.nonzero().unbind(-1))

    def prefilled() -> Prefill:
        return work.backend.prefill(work.inputs, work.dictionaries, where, self_check=False)

    clean = prefilled()
    rows = LatentRows.joined(list(alive_rows(clean).values()))
    found = ablate_from(clean, rows, columns=work.columns, row_budget=work.row_budget)  # with its self-check
    assert work.backend.replays.trusts_suffixes(clean), "this model does not run suffixes"
    size = min(len(rows), naive_budget(clean))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).to(rows.points.device)
    worst, effect, ratios = 0.0, 0.0, []
    answers = clean.logits[work.inputs.attention_mask.sum(-1).cumsum(-1) - 1][:, work.columns]
    for turn in range(options.turns):
        sample = order[turn * size % len(rows) :][:size]
        part = rows.select(sample)
        slow = clock.run("naive", lambda: ablate_from(clean, part, columns=work.columns, naive=True))  # noqa: B023
        clock.times["naive"][-1] *= len(rows) / len(sample)
        held = clock.run("prefill", prefilled)
        replay = lambda: ablate_from(held, rows, None, work.columns, work.row_budget, self_check=False)  # noqa: B023, E731
        clock.run("suffix", replay)
        spent = clock.times["suffix"][-1] + clock.times["prefill"][-1]
        ratios.append(clock.times["naive"][-1] / spent)
        worst = max(worst, (slow - found[sample]).abs().max().item())
        effect = max(effect, (slow[:, 0] - answers[clean.points.examples[part.points]]).abs().max().item())
    return {
        "tokens": options.tokens,
        "rows": len(rows),
        "rows_of_a_whole_forward": size,
        "naive_s": clock.median("naive"),
        "suffix_s": clock.median("suffix"),
        "prefill_s": clock.median("prefill"),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "max_abs_error": worst,
        "max_effect": effect,
    }


def main() -> None:
    """Run the benchmark, print a table and write ``benchmarks/out/suffix.json``."""
    parser = options_of(__doc__, ["blocks.15.hook_resid_post"])
    parser.add_argument("--tokens", type=int, default=12, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5)
    parser.set_defaults(batch=4, side="right")
    measured("suffix", parser, measure, SHOWN)


if __name__ == "__main__":
    main()
