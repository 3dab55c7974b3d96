"""The hooks of analyses are the same on every way in: one record, kept by one adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

import interpretune as it
from interpretune.analysis import AnalysisCache, AnalysisCfg
from interpretune_lightning import AnalysisCallback
from tests.analysis.recorded_hooks import (
    HasItsOwnStep,
    Way,
    by_command,
    by_run_analysis,
    by_runner,
    install_recorder,
)
from tests.sessions import BATCH_SIZE, N_ROWS, make_session
from tests.tiny_latents import RandomDictionary

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
MODES = ("clean_no_sae", "ablation")
SIZES = (BATCH_SIZE, BATCH_SIZE, N_ROWS - 2 * BATCH_SIZE)


class HasBothSteps(HasItsOwnStep):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass


class HasTestStep(it.ITModule):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass


def by_callback(session: it.ITSession, modes: Sequence[str], folder: Path) -> dict[str, AnalysisCache]:
    cfgs = [AnalysisCfg(mode=mode) for mode in modes]
    trainer = Trainer(accelerator="cpu", callbacks=[AnalysisCallback(*cfgs)], default_root_dir=folder, **QUIET)
    trainer.test(**session, verbose=False)
    return {str(cfg.mode): cfg.analysis_cache for cfg in cfgs}


WAYS: dict[str, tuple[Way, tuple[str, ...], type]] = {
    "run_analysis": (by_run_analysis, ("recorder",), it.ITModule),
    "run_analysis, own step": (by_run_analysis, ("recorder",), HasItsOwnStep),
    "run_analysis under Lightning": (by_run_analysis, ("lightning", "recorder"), it.ITModule),
    "runner": (by_runner, ("recorder",), it.ITModule),
    "runner under Lightning": (by_runner, ("lightning", "recorder"), it.ITModule),
    "command": (by_command, ("recorder",), it.ITModule),
    "callback": (by_callback, ("lightning", "recorder"), HasTestStep),
    "callback, own step": (by_callback, ("lightning", "recorder"), HasBothSteps),
}
PLAIN_WAYS = [way for way in WAYS if "under" not in way]


@pytest.fixture
def session_for(tmp_path: Path) -> Callable[..., it.ITSession]:
    def session_for(way: str, *further: str) -> it.ITSession:
        _, adapters, module_cls = WAYS[way]
        latent_model = RandomDictionary("blocks.0.hook_resid_post", seed=1)
        options = {"module_cls": module_cls, "latent_models": [latent_model]}
        return make_session(tmp_path, adapters=(*adapters, *further), **options)

    return session_for


def of(record: Sequence[tuple[Any, ...]], name: str) -> list[tuple[Any, ...]]:
    return [entry[1:] for entry in record if entry[0] == name]


def test_every_way_in_calls_the_same_hooks(adapter_of, session_for, tmp_path):
    recorder = install_recorder(adapter_of)
    labels = session_for("runner").datamodule.dataset["validation"]["labels"]
    rows = [
        ([label + 7 for label in labels[first : first + BATCH_SIZE]], [float(index)] * size)
        for index, (first, size) in enumerate(zip(range(0, N_ROWS, BATCH_SIZE), SIZES, strict=True))
    ]
    for way, (run, *_) in WAYS.items():
        recorder.record.clear()
        caches = run(session_for(way), MODES, tmp_path / way)
        for mode in MODES:
            keys = {"labels", "orig_labels", "answer_indices", "loss", "preds", "logit_diffs"}
            of_latents = {"activations", "effects", "effect_noise", "peak_values", "peak_positions"}
            keys |= of_latents if mode == "ablation" else set()
            expected = [
                ("open", None, None, None),
                *[("run", index, size, tuple(sorted(keys)), True) for index, size in enumerate(SIZES)],
                ("close", None, rows, True, None),
            ]
            assert of(recorder.record, mode) == expected, way
            stored = zip(caches[mode].orig_labels, caches[mode].logit_diffs, strict=True)
            assert [(found.tolist(), diffs.tolist()) for found, diffs in stored] == rows, way
        if run is not by_run_analysis:
            assert [entry[0] for entry in recorder.record if entry[1] == "open"] == list(MODES), way
            assert [entry[0] for entry in recorder.record if entry[1] == "close"] == [*reversed(MODES)], way


@pytest.mark.parametrize("error", [RuntimeError("in the middle"), KeyboardInterrupt()])
def test_every_way_in_closes_with_the_error_in_the_middle(adapter_of, session_for, tmp_path, error):
    recorder = install_recorder(adapter_of)
    recorder.fails["run", "ablation", 1] = error
    for way in PLAIN_WAYS:
        run = WAYS[way][0]
        recorder.record.clear()
        # Lightning ends the program after an interrupt
        with pytest.raises((type(error), SystemExit) if run is by_callback else type(error)):
            run(session_for(way), MODES, tmp_path / way)
        ablation = of(recorder.record, "ablation")
        assert [entry[:2] for entry in ablation] == [("open", None), ("run", 0), ("run", 1), ("close", None)], way
        _, _, rows, _, found = ablation[-1]
        assert [len(diffs) for _, diffs in rows] == [BATCH_SIZE], way
        assert found is error, way
        closed = of(recorder.record, "clean_no_sae")[-1]
        assert closed[-1] is (None if run is by_run_analysis else error), way


def test_every_way_in_closes_what_was_opened(adapter_of, session_for, tmp_path):
    """The second adapter fails to open the second analysis: the first adapter closes both, the second one the first."""
    first, second = install_recorder(adapter_of, "recorder"), install_recorder(adapter_of, "second")
    error = RuntimeError("no room")
    second.fails["open", "ablation", None] = error
    for way in PLAIN_WAYS:
        run = WAYS[way][0]
        first.record.clear()
        second.record.clear()
        with pytest.raises(RuntimeError, match="no room"):
            run(session_for(way, "second"), MODES, tmp_path / way)
        assert [entry[0] for entry in of(first.record, "ablation")] == ["open", "close"], way
        assert [entry[0] for entry in of(second.record, "ablation")] == ["open"], way
        assert of(first.record, "ablation")[-1][-1] is error, way
        for recorder in (first, second):
            closed = of(recorder.record, "clean_no_sae")[-1]
            assert (closed[0], closed[-1]) == ("close", None if run is by_run_analysis else error), way
