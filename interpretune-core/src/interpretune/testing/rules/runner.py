"""Rules of runs into stores: they give what analyses in memory give, and are found again."""

from __future__ import annotations

from typing import Any

import torch

from interpretune.analysis.cache import AnalysisCache
from interpretune.analysis.modes import AnalysisCfg, AnalysisMode
from interpretune.analysis.plan_runner import AnalysisRunner
from interpretune.analysis.runner import run_analysis
from interpretune.session.session import it_session_end
from interpretune.testing.comparing import copies, same
from interpretune.testing.hook_points import with_latents
from interpretune.testing.recording import hook_calls
from interpretune.testing.rule import expect, expect_no_error, rule
from interpretune.testing.workbench import N_BATCHES, Bench

NEEDED = ("splice", "gradients", "ablation")
COMPARED = ("labels", "orig_labels", "answer_indices", "loss", "preds", "logit_diffs", "activations", "effects")
WRAPPED = "it_run_analysis"
STEP = "it_run_step"
ANALYSES = {str(mode): mode for mode in AnalysisMode}


@rule(stack=True, capabilities=NEEDED, after=["analyses-agree"])
def wrappers_see_every_batch(bench: Bench) -> None:
    """Each batch of each analysis comes through it_run_step, and through it_run_analysis, where others wrap."""
    modes = {str(mode): mode for mode in (AnalysisMode.clean_no_sae, AnalysisMode.clean_w_sae)}
    for what in ("run_analysis", "AnalysisRunner"):
        with hook_calls() as calls:
            session = bench.new_session(**with_latents(bench))
            if what == "run_analysis":
                for mode in modes.values():
                    run_analysis(session.module, session.datamodule, AnalysisCfg(mode=mode))
            else:
                AnalysisRunner(session.module, session.datamodule, bench.folder / "wrapped-stores").run(modes)
            for hook in (STEP, WRAPPED):
                seen = calls.count(hook)
                about = f"two analyses of {N_BATCHES} batches by {what} called {hook} {seen} times"
                expect(seen == 2 * N_BATCHES, about, f"{2 * N_BATCHES} calls")
            it_session_end(**session)


@rule(stack=True, capabilities=NEEDED, after=["wrappers-see-every-batch"])
def runner_agrees(bench: Bench) -> None:
    """AnalysisRunner stores for each mode, all of them in one pass, what run_analysis gives, over all batches."""
    session = bench.new_session(**with_latents(bench))
    expected = "stores of the four modes, which run_analysis runs without an error"
    with expect_no_error("AnalysisRunner fails on the four modes", expected):
        stores = AnalysisRunner(session.module, session.datamodule, bench.folder / "stores").run(ANALYSES)
    for name, mode in ANALYSES.items():
        expect(stores[name].manifest.complete, f"the store of {name} is not complete after the run", "one that is")
        stored = AnalysisCache.of(stores[name])
        wanted = run_analysis(session.module, session.datamodule, AnalysisCfg(mode=mode))
        expect(
            len(stored.batches) == len(wanted.batches) == N_BATCHES,
            f"{name} has {len(stored.batches)} batches in the store and {len(wanted.batches)} in memory",
            f"{N_BATCHES}, all of the split",
        )
        for index, (found, right) in enumerate(zip(stored.batches, wanted.batches, strict=True)):
            _same_batch(found, right, f"of batch {index} of {name}, in the store beside run_analysis,")
    it_session_end(**session)


def _same_batch(found: Any, wanted: Any, where: str) -> None:
    for field in COMPARED:
        right, given = (copies(getattr(item, field)) for item in (wanted, found))
        expect(given.keys() == right.keys(), f"{field} {where} has {sorted(given)}", f"{sorted(right)}")
        for path, value in right.items():
            same(torch.as_tensor(given[path]), torch.as_tensor(value), f"{field}{path} {where}")


@rule(stack=True, capabilities=NEEDED, after=["runner-agrees", "state-loads"])
def runner_finds_its_stores(bench: Bench) -> None:
    """What was run is not run again, in another session with the same settings, and its store is found."""
    root, analyses = bench.folder / "found-stores", {"once": AnalysisMode.clean_w_sae}
    folders = []
    for attempt in ("first", "second"):
        with hook_calls() as calls:
            session = bench.new_session(**with_latents(bench))
            store = AnalysisRunner(session.module, session.datamodule, root).run(analyses)["once"]
            it_session_end(**session)
        folders.append(store.folder)
        steps, wanted = calls.count(STEP), N_BATCHES if attempt == "first" else 0
        expect(steps == wanted, f"the {attempt} run made {steps} steps", f"{wanted}: what is there is not run again")
    expect(
        folders[0] == folders[1],
        f"a second session with the same settings has its store in {folders[1]}",
        f"{folders[0]}: what the session loads may not depend on the time, the process or a counter",
    )
