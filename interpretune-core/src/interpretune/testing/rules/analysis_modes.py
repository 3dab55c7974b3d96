"""Rules of what an analysis leaves behind: gradients on or off, train or evaluation mode, as they were."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from interpretune.analysis.modes import AnalysisCfg, AnalysisMode
from interpretune.analysis.plan_runner import AnalysisRunner
from interpretune.analysis.runner import analysis_step, run_analysis
from interpretune.session.session import it_session_end
from interpretune.testing.hook_points import with_latents
from interpretune.testing.rule import expect, rule
from interpretune.testing.step_notes import modes_of, note, notes_of, other_modes
from interpretune.testing.user_classes import UserModule
from interpretune.testing.workbench import Bench

BATCHES = 2
NEEDED = ("splice", "gradients", "ablation")
STEP = "analysis_test_step"
SHOWN = 3
"""Names in a message."""


class AnalysingModule(UserModule):
    """Notes in each step of an analysis whether gradients are on."""

    def analysis_test_step(self, batch: Any, batch_idx: int, analysis_cfg: Any) -> None:
        """One step of an analysis."""
        note(self, STEP, batch)
        analysis_step(self, batch, batch_idx, analysis_cfg)


@rule(stack=True, capabilities=NEEDED, after=["wrappers-see-every-batch"])
def analysis_keeps_grad_mode(bench: Bench) -> None:
    """An analysis leaves gradients on where they were on, and off where they were off, between its batches too."""
    session = bench.new_session(module_cls=AnalysingModule, **with_latents(bench))
    for enabled in (True, False):
        mode = "on" if enabled else "off"
        for what, run in {**_in_memory(session), **_into_stores(bench, f"grad-{mode}")}.items():
            with torch.set_grad_enabled(enabled):
                run()
                now = torch.is_grad_enabled()
            expect(now == enabled, f"after {what} gradients are {'on' if now else 'off'}", f"{mode}, as before")
            seen = {item.gradients for item in notes_of(session.module, STEP)}
            notes_of(session.module).clear()
            other = "off" if enabled else "on"
            expect(seen <= {enabled}, f"in a step of {what} gradients are {other}", f"{mode}, as in the caller's code")
    it_session_end(**session)


@rule(stack=True, capabilities=NEEDED, after=["wrappers-see-every-batch"])
def analysis_keeps_train_mode(bench: Bench) -> None:
    """An analysis runs in evaluation mode and leaves each part of the module in the mode in which it was."""
    session = bench.new_session(**with_latents(bench))
    module: Any = session.module
    for what, run in {**_in_memory(session), **_into_stores(bench, "train", session)}.items():
        module.train()
        parts = list(module.model.modules())
        for part in parts[len(parts) // 2 :: 2]:
            part.training = False
        before = modes_of(module)
        with _parts_in_train_mode(module.model) as training:
            run()
        others = other_modes(before, modes_of(module))
        expect(not others, f"after {what} there are in another mode {', '.join(others[:SHOWN])}", "the modes as before")
        found = list(training)[:SHOWN]
        expect(not found, f"in the forwards of {what} {', '.join(found)} run in train mode", "evaluation mode")
    it_session_end(**session)


@contextlib.contextmanager
def _parts_in_train_mode(model: nn.Module) -> Iterator[dict[str, None]]:
    """Parts that run in train mode, by path."""
    found: dict[str, None] = {}

    def look(path: str, part: nn.Module, _: Any) -> None:
        if part.training:
            found[path or "the model"] = None

    with contextlib.ExitStack() as stack:
        for path, part in model.named_modules():
            if next(part.children(), None) is None:
                stack.callback(part.register_forward_pre_hook(functools.partial(look, path)).remove)
        yield found


def _in_memory(session: Any) -> dict[str, Callable[[], Any]]:
    """Each mode by ``run_analysis``, and what it is called."""
    module, datamodule = session.module, session.datamodule

    def run(mode: AnalysisMode) -> None:
        run_analysis(module, datamodule, AnalysisCfg(mode=mode), limit_batches=BATCHES)

    return {f"the analysis {mode}": functools.partial(run, mode) for mode in AnalysisMode}


def _into_stores(bench: Bench, name: str, session: Any = None) -> dict[str, Callable[[], Any]]:
    """A run of two modes into stores, by the given session or by one of its own."""
    root = bench.folder / f"stores-{name}"

    def run() -> None:
        used = session or bench.new_session(**with_latents(bench))
        modes = (AnalysisMode.clean_no_sae, AnalysisMode.attr_patching)
        AnalysisRunner(used.module, used.datamodule, root, limit=BATCHES).run({str(mode): mode for mode in modes})

    return {"a run of AnalysisRunner": run}
