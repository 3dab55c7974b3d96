"""What the runner and the stores cost beside analyses.

Pairs of runs, side by side in one process, in alternating order: the four modes over the entailment rows in plain
calls, whose results are thrown away, and the same plans by ``AnalysisRunner`` into stores: identities and hashes,
journal, shards and manifest included.

Parts that are far below the noise of such pairs are measured apart: all that is hashed, at once; locks and what keeps
edits to their thread, as the number of their calls in one pass times the seconds of one; the forwards that measure the
noise of effects, as they come by.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import timeit
import warnings
from collections import Counter
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from tabulate import tabulate
from transformers.utils.logging import disable_progress_bar

import interpretune as it
from interpretune.analysis import AnalysisCache, AnalysisCfg, AnalysisMode, AnalysisRunner, SaveCfg, plan_of
from interpretune.analysis.identity import identify_batch, identify_data
from interpretune.analysis.steps import sources_of
from interpretune.analysis.stored_run import describe_run
from interpretune.cli.run_config import read_run
from interpretune.operations import PlanRun, latent_analyses
from interpretune.replay.effect_noise import measure_noise
from interpretune.system.model_lock import model_lock
from interpretune.system.own_context import OwnContext
from interpretune.system.torch_state import eval_mode

RESULT = Path(__file__).parent / "out" / "runner.json"


def plans_of(session: it.ITSession) -> dict[str, Any]:
    """The four modes."""
    save = SaveCfg(prompts=True, tokens=True)
    cfgs = {str(mode): AnalysisCfg(mode=mode, analysis_cache=AnalysisCache(save)) for mode in AnalysisMode}
    return {name: plan_of(cfg, session.module.latent_models) for name, cfg in cfgs.items()}


def compute_only(session: it.ITSession) -> None:
    """All batches through all plans, and nothing else."""
    module = session.module
    run = PlanRun(list(plans_of(session).values()))
    with eval_mode(module):
        for number, batch in enumerate(session.datamodule.test_dataloader()):
            moved = module.batch_to_device(batch)
            label_ids, labels = module.labels_to_ids(moved.pop("labels"))
            run.run(sources_of(module, label_ids, labels, moved, number), len(labels))


def hashing_only(session: it.ITSession) -> float:
    """Seconds for all that a run hashes: data before and during the pass, model, latent models, code, and plans."""
    plans = plans_of(session)
    batches = list(session.datamodule.test_dataloader())
    start = time.perf_counter()
    data = identify_data(batches)
    describe_run(**session, data=data, seed=0)
    for plan in plans.values():
        assert plan.key
    PlanRun(list(plans.values()))
    for batch in batches:
        identify_batch(batch)
    return time.perf_counter() - start


def guards_only(session: it.ITSession) -> dict[str, float]:
    """Seconds for locks, for blocks whose edits are their thread's own, and for asking whether an edit is."""
    model, block, value = session.module.model, OwnContext(), torch.zeros(())
    own = block.only_here(_same)

    def lock() -> None:
        with model_lock(model):
            pass

    def enter() -> None:
        with block:
            pass

    guards = {
        "locks_s": (model_lock.__code__, lock),
        "blocks_s": (OwnContext.__enter__.__code__, enter),
        "edits_s": (own.__code__, lambda: own(value)),
    }
    calls = Counter[Any]()
    sys.setprofile(lambda frame, event, _: calls.update([frame.f_code] if event == "call" else ()))
    try:
        compute_only(session)
    finally:
        sys.setprofile(None)
    return {name: calls[code] * min(timeit.repeat(call, number=1000)) / 1000 for name, (code, call) in guards.items()}


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


def noise_only(session: it.ITSession) -> float:
    """Seconds in which a pass measures what rounding alone does to effects."""
    spent: list[float] = []

    def timed(*args: Any) -> float:
        start = time.perf_counter()
        noise = measure_noise(*args)
        spent.append(time.perf_counter() - start)
        return noise

    with mock.patch.object(latent_analyses, "measure_noise", timed):
        compute_only(session)
    return sum(spent)


def with_runner(session: it.ITSession, root: Path) -> dict[str, Any]:
    """The same by the runner, into new stores."""
    stores = AnalysisRunner(**session, root=root).run(plans_of(session))
    assert all(store.complete for store in stores.values())
    files = [path for path in root.rglob("*") if path.is_file()]
    return {"bytes": sum(path.stat().st_size for path in files), "rows": next(iter(stores.values())).n_examples}


def make_session(options: argparse.Namespace) -> it.ITSession:
    """That of the demo's file for other rows, the entailment rows of the package."""
    changed = {
        "shared_cfg.model_name_or_path": str(it.offline_model()),
        "datamodule_cfg.eval_batch_size": options.batch_size,
        "datamodule_cfg.limit_rows": options.limit,
    }
    given = [f"--{name}={v if isinstance(v, str) else json.dumps(v)}" for name, v in changed.items()]
    with as_file(files("interpretune").joinpath("cli/demo_files/rows.yaml")) as file:
        return it.ITSession(read_run([str(file), *given]).session)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the pairs."""
    session = make_session(options)
    it.it_init(**session)
    plain, run, sizes = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        compute_only(session)  # the backend looks at the model, and replays are checked
        for pair in range(options.pairs):
            for work in ("plain", "run") if pair % 2 == 0 else ("run", "plain"):
                start = time.perf_counter()
                if work == "plain":
                    compute_only(session)
                    plain.append(time.perf_counter() - start)
                else:
                    sizes = with_runner(session, Path(folder) / str(pair))
                    run.append(time.perf_counter() - start)
    compute_s, hashing = statistics.median(plain), statistics.median(hashing_only(session) for _ in range(3))
    guards, noise = guards_only(session), noise_only(session)
    it.it_session_end(**session)
    ratios = [b / a for a, b in zip(plain, run, strict=True)]
    return {
        "model": session.module.it_cfg.model_name_or_path.rsplit("/", 1)[-1],
        "threads": torch.get_num_threads(),
        "pairs": options.pairs,
        **sizes,
        "compute_s": compute_s,
        "run_s": statistics.median(run),
        "hashing_s": hashing,
        "hashing_share": hashing / compute_s,
        **guards,
        "guards_share": sum(guards.values()) / compute_s,
        "noise_s": noise,
        "noise_share": noise / compute_s,
        "overhead": statistics.median(ratios) - 1,
        "overheads": [ratio - 1 for ratio in ratios],
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="rows of each split (default: all; 64 are analysed)")
    parser.add_argument("--batch-size", type=int, default=4, help="rows in a batch (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    warnings.simplefilter("ignore")
    figures = measure(options)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    shown = [[name, f"{v:.4g}" if isinstance(v, float) else v] for name, v in figures.items() if name != "overheads"]
    Console().print(tabulate(shown), highlight=False)
    print(f"written to {RESULT}")


if __name__ == "__main__":
    main()
