"""Exact ablation of every alive latent, beside the loop that everybody runs.

On one model, one batch and two dictionaries, side by side in one process and in turns: the plain loop (one spliced
forward of the batch for each alive latent), replays, attribution patching, gradient edges, and single forwards. The
loop is run for a sample of the latents and extrapolated, unless ``--whole-loop``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clock import Clock, flops_per_second, peak_of
from benchmarks.command import measured, options_of
from benchmarks.plain_loops import ablate_in_loop, edges_in_loop, full_gradients
from benchmarks.workload import BACKENDS, Workload, alive_rows
from interpretune.analysis import gradient_edges
from interpretune.replay.prefill import Prefill

BOUND_TURNS = 15
SHOWN = {
    "backend": "backend",
    "latents": "latents",
    "rows": "rows",
    "naive_s": "loop (s)",
    "fast_s": "replay with prefill (s)",
    "ratio": "ratio",
    "ratio_one_position": "ratio, one position unembedded",
    "prefill_s": "prefill (s)",
    "replay_s": "replay (s)",
    "share_of_bound": "share of FLOP bound",
    "forward_s": "forward (s)",
    "spliced_s": "spliced forward (s)",
    "attribution_s": "attribution (s)",
    "attribution_ratio": "attribution ratio",
    "edges_ratio": "gradient edges ratio",
    "max_abs_error": "largest error",
    "max_effect": "largest effect",
}


def measure(work: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one backend."""
    clean = work.prefill()
    assert clean.kept is not None, "this model is not replayed"
    device = work.backend.model_device
    clock = Clock(device)
    start = time.perf_counter()
    checked = work.backend.prefill(work.inputs, work.dictionaries)
    check_s = time.perf_counter() - start
    assert checked.kept is not None, work.backend.replays.checks()
    ablation = measure_ablation(work, clean, clock, options)
    gradients = measure_gradients(work, clean, clock)
    peaks = measure_peaks(work, clean)
    bound = measure_bound(work, clean, clock)
    return {
        "slots": work.inputs.tokens.shape[1],
        "tokens": work.inputs.attention_mask.sum(-1).tolist(),
        **ablation,
        "self_check_s": check_s - clock.median("prefill"),
        **gradients,
        **peaks,
        **bound,
    }


def measure_ablation(work: Workload, clean: Prefill, clock: Clock, options: argparse.Namespace) -> dict[str, Any]:
    """The loop for some latents and, in turns with it, replays of all of them and single runs."""
    rows, found = alive_rows(clean), work.replay(clean)
    alive = {name: item.changes[name].latents.unique() for name, item in rows.items()}
    draw = torch.Generator().manual_seed(0)
    sample = [
        (name, int(latent))
        for name, ids in alive.items()
        for latent in (ids if options.whole_loop else ids[torch.randperm(len(ids), generator=draw)[: options.sample]])
    ]
    backend, inputs, fitted = work.backend, work.inputs, work.dictionaries
    worst, effect = 0.0, 0.0
    for turn, (name, latent) in enumerate(sample):
        wide = clock.run("loop", lambda: ablate_in_loop(backend, inputs, fitted, name, latent, narrow=False))  # noqa: B023
        if not options.whole_loop or turn < options.sample:
            clock.run("narrow", lambda: ablate_in_loop(backend, inputs, fitted, name, latent, narrow=True))  # noqa: B023
            with torch.no_grad():
                clock.run("forward", lambda: backend.run(inputs))
                clock.run("spliced", lambda: backend.run_spliced(inputs, fitted))
            held = clock.run("prefill", work.prefill)
            clock.run("replay", lambda: work.replay(held))  # noqa: B023
            clock.run("attribution", work.attribution)
        mine = rows[name].changes[name].latents == latent
        expected = clean.logits[:, work.columns].clone()
        expected[rows[name].points[mine]] = found[name][mine]
        worst = max(worst, (wide[:, work.columns] - expected).abs().max().item())
        effect = max(effect, (wide[:, work.columns] - clean.logits[:, work.columns]).abs().max().item())
    latents = sum(map(len, alive.values()))
    fast = clock.median("prefill") + clock.median("replay")
    naive, narrow = clock.median("loop") * latents, clock.median("narrow") * latents
    return {
        "latents": latents,
        "rows": sum(map(len, rows.values())),
        "sampled": len(sample),
        "naive_s": naive,
        "naive_one_position_s": narrow,
        "fast_s": fast,
        "ratio": naive / fast,
        "ratio_one_position": narrow / fast,
        "prefill_s": clock.median("prefill"),
        "replay_s": clock.median("replay"),
        "forward_s": clock.median("forward"),
        "spliced_s": clock.median("spliced"),
        "max_abs_error": worst,
        "max_effect": effect,
    }


def measure_gradients(work: Workload, clean: Prefill, clock: Clock) -> dict[str, Any]:
    """Attribution beside gradients of everything, and gradient edges beside one backward for each downstream latent."""
    backend, inputs, fitted, names = work.backend, work.inputs, work.dictionaries, work.names
    for _ in range(3):
        usual = clock.run("full_gradients", lambda: full_gradients(backend, inputs, fitted, work.columns))
        held = work.prefill()
        clock.run("edges", lambda: gradient_edges(held, *names))  # noqa: B023
    replayed = work.attribution()
    slow_edges = clock.run("edges_loop", edges_in_loop(backend, inputs, fitted, 4))
    edges = gradient_edges(clean, *names)
    first = edges[0]
    edge_error = max(
        (clean.latents[names[0]][0, first.upstream] * grad[first.upstream] - first.values[:, i]).abs().max().item()
        for i, grad in enumerate(slow_edges)
    )
    clock.run("edges_graph", edges_in_loop(backend, inputs, fitted, 0))
    each = (clock.median("edges_loop") - clock.median("edges_graph")) / len(slow_edges)
    in_loop = each * sum(len(item.downstream) for item in edges)
    edges_s = clock.median("edges")
    return {
        "attribution_s": clock.median("attribution"),
        "full_gradients_s": clock.median("full_gradients"),
        "attribution_ratio": clock.median("full_gradients") / clock.median("attribution"),
        "gradient_error": max((usual[name] - replayed[name]).abs().max().item() for name in names),
        "edges": sum(item.values.numel() for item in edges),
        "edges_s": edges_s,
        "edges_loop_s": in_loop,
        "edges_ratio": in_loop / edges_s,
        "edge_error": edge_error,
    }


def measure_peaks(work: Workload, clean: Prefill) -> dict[str, Any]:
    """Bytes of each piece of work beyond what is there before."""
    device = work.backend.model_device
    usual = lambda: full_gradients(work.backend, work.inputs, work.dictionaries, work.columns)  # noqa: E731
    return {
        "peak_bytes": peak_of(device, lambda: work.replay(clean))[0],
        "prefill_peak_bytes": peak_of(device, work.prefill)[0],
        "attribution_peak_bytes": peak_of(device, work.attribution)[0],
        "full_gradients_peak_bytes": peak_of(device, usual)[0],
    }


def measure_bound(work: Workload, clean: Prefill, clock: Clock) -> dict[str, Any]:
    """How long replays would take at the speed of matrix products, and the share of it that is reached.

    The speed of a shared machine changes: each replay is held against the products just before and after it.
    """
    device, dtype = work.backend.model_device, clean.logits.dtype
    with FlopCounterMode(display=False) as counter:
        work.replay(clean)
    flops = counter.get_total_flops()
    speeds, shares = [flops_per_second(device, dtype)], []
    for _ in range(BOUND_TURNS):
        clock.run("bounded", lambda: work.replay(clean))
        speeds.append(flops_per_second(device, dtype))
        shares.append(flops / statistics.mean(speeds[-2:]) / clock.times["bounded"][-1])
    return {"flop_bound_s": flops / statistics.median(speeds), "share_of_bound": statistics.median(shares)}


def main() -> None:
    """Run the benchmark, print a table and write ``benchmarks/out/ablation.json``."""
    parser = options_of(__doc__, ["blocks.15.hook_resid_post", "blocks.22.hook_resid_post"])
    parser.add_argument("--shots", type=int, default=3, help="answered questions in a prompt (default: %(default)s)")
    parser.add_argument("--side", default="left", choices=["left", "right"])
    parser.add_argument("--sample", type=int, default=2, help="latents of each dictionary in the loop (%(default)s)")
    parser.add_argument("--whole-loop", action="store_true", help="run the loop for every latent: hours, not minutes")
    parser.set_defaults(backends=BACKENDS)
    measured("ablation", parser, measure, SHOWN)


if __name__ == "__main__":
    main()
