"""The hooks of analyses are the same on every way in: one record, kept by one adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

import interpretune as it
from interpretune.analysis import AnalysisCache, AnalysisMode
from interpretune_lightning import AnalysisCallback
from tests.analysis.recorded_hooks import (
    ChangesItsResults,
    HasItsOwnStep,
    HasTestStep,
    Way,
    by_command,
    by_file,
    by_plan,
    by_run_analysis,
    by_runner,
    cfg_of,
    install_keeper,
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


def by_callback(session: it.ITSession, modes: Sequence[str], folder: Path) -> dict[str, AnalysisCache]:
    cfgs = [cfg_of(mode) for mode in modes]
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


EVERY_WAY: dict[str, Way] = {
    "run_analysis": by_run_analysis,
    "runner": by_runner,
    "command": by_file,
    "callback": by_callback,
}
FRAMEWORKS = {"callback": ("lightning",)}


@pytest.fixture
def keeps(adapter_of: Callable[..., None], tmp_path: Path) -> Callable[..., Any]:
    """What the hooks of steps and analyses carried on a way into analyses, and the rows that they stored."""
    keeper = install_keeper(adapter_of)

    def keeps(way: str, modes: Sequence[str], module_cls: type) -> tuple[list[Any], dict[str, list[Any]]]:
        session = make_session(tmp_path, adapters=(*FRAMEWORKS.get(way, ()), "keeper"), module_cls=module_cls)
        keeper.record.clear()
        caches = EVERY_WAY[way](session, modes, tmp_path / f"{way} {module_cls.__name__} {len(modes)}")
        tables = {mode: cache.to_tables() for mode, cache in caches.items()}
        rows = {mode: [sorted(found[name].to_pylist(), key=str) for name in found] for mode, found in tables.items()}
        return [entry for entry in keeper.record if not of_trainer(entry)], rows

    return keeps


def of_trainer(entry: tuple[Any, ...]) -> bool:
    """Whether a trainer called the hook for its own test step, or to tell means over its epoch."""
    return "test_step" in entry[1] or (entry[0].startswith("it_log") and ["epoch_mean"] in entry[1])


def by_analysis(record: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    """Of a record the hooks of each analysis, those that its steps call included."""
    found: dict[str, list[Any]] = {}
    step: list[Any] = []
    for entry in record:
        name = next((item[0] for item in entry[1] if isinstance(item, tuple)), None)
        if entry[0].startswith("it_move_batch"):
            continue  # once a batch, for all analyses
        if name is not None:
            found.setdefault(name, []).extend([*step, entry])
            step = []
            last = name
        elif entry[0] == "it_run_step ends":
            found[last].append(entry)
        else:
            step.append(entry)
    return found


@pytest.mark.parametrize("module_cls", [HasTestStep, ChangesItsResults])
def test_one_record_of_one_analysis_on_every_way(keeps, module_cls):
    expected, rows = keeps("run_analysis", ["ablation"], module_cls)
    own = ["it_forward", "it_forward ends", "it_log", "it_log ends"] if module_cls is ChangesItsResults else []
    batch = ["it_move_batch", "it_move_batch ends", "it_run_step", *own, "it_run_analysis", "it_run_analysis ends"]
    opened, closed = (["it_open_analysis", "it_open_analysis ends"], ["it_close_analysis", "it_close_analysis ends"])
    assert [entry[0] for entry in expected] == [*opened, *[*batch, "it_run_step ends"] * len(SIZES), *closed]
    for way in ("runner", "command", "callback") if module_cls is HasTestStep else ("runner",):
        assert keeps(way, ["ablation"], module_cls) == (expected, rows), way


def test_one_record_of_four_analyses_on_every_way(keeps):
    module_cls = ChangesItsResults
    modes = [str(mode) for mode in AnalysisMode]
    alone, rows = keeps("run_analysis", modes, module_cls)
    expected, stored = keeps("runner", modes, module_cls)
    assert by_analysis(expected) == by_analysis(alone)
    assert stored == rows
    for way in ("command", "callback"):
        assert keeps(way, modes, module_cls) == (expected, rows), way


@pytest.mark.parametrize("module_cls", [HasTestStep, ChangesItsResults])
def test_a_plan_has_the_record_of_its_mode(adapter_of, tmp_path, module_cls):
    keeper = install_keeper(adapter_of)
    records = []
    for way, cfg in ((by_runner, "ablation"), (by_plan, None)):
        session = make_session(tmp_path, adapters=("keeper",), module_cls=module_cls)
        keeper.record.clear()
        way(session, ["ablation"], tmp_path / way.__name__)
        carried = [item for entry in keeper.record for item in entry[1] if isinstance(item, tuple)]
        assert {item[2] for item in carried} == {cfg}
        records.append([entry[0] for entry in keeper.record])
    assert records[0] == records[1]


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
            keys |= {"tokens", "pieces", "prompts"}
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


@pytest.mark.parametrize(
    ("error", "ways"), [(RuntimeError("in the middle"), PLAIN_WAYS), (KeyboardInterrupt(), ["runner", "callback"])]
)
def test_every_way_in_closes_with_the_error_in_the_middle(adapter_of, session_for, tmp_path, error, ways):
    recorder = install_recorder(adapter_of)
    recorder.fails["run", "ablation", 1] = error
    for way in ways:
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
