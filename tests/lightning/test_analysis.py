"""Analyses from ``Trainer.test`` give the numbers of core's runner, in one process and in several."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

import interpretune as it
from interpretune.analysis import AnalysisCache, AnalysisCfg, AnalysisEngine, AnalysisMode, AnalysisRunner, run_analysis
from interpretune.analysis.runner import analysis_step
from interpretune.store import AnalysisStore
from interpretune_lightning import AnalysisCallback
from interpretune_lightning.sharing import WholeBatchSampler, share_whole_batches
from tests.lightning.ddp_analysis import analyse
from tests.other_process import one_thread, run_ranks
from tests.sessions import make_session, stack_options
from tests.tiny_latents import RandomDictionary

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def latents() -> list[RandomDictionary]:
    return [RandomDictionary("blocks.0.hook_resid_post", seed=1), RandomDictionary("blocks.2.hook_mlp_out", seed=2)]


def tables(cache: AnalysisCache) -> dict[str, list[dict]]:
    return {name: table.to_pylist() for name, table in cache.to_tables().items()}


def assert_same_rows(found: dict[str, list[dict]], expected: dict[str, list[dict]]) -> None:
    assert len(expected["examples"]) == 7
    for name, rows in expected.items():
        assert len(found[name]) == len(rows)
        for row, other in zip(found[name], rows, strict=True):
            for column, value in other.items():
                assert row[column] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), column


class AnalysesInItsTestStep(it.ClassificationModule):
    """The other way: an analysis as the test step."""

    def test_step(self, batch, batch_idx):
        analysis_step(self, batch, batch_idx, self.analysis_cfg)


def test_run_analysis_takes_the_session_in_every_context(tmp_path):
    found = {}
    for adapters in (("core",), ("lightning",)):
        session = make_session(tmp_path, adapters=adapters)
        found[adapters] = tables(run_analysis(**session, analysis_cfg=AnalysisCfg()))
    assert_same_rows(found["lightning",], found["core",])
    with pytest.raises(it.ConfigurationError, match=r"run_analysis\(\*\*session, analysis_cfg=AnalysisCfg"):
        run_analysis(**session)


def test_plans_run_into_the_same_stores_in_every_context(tmp_path):
    found = {}
    for adapters in (("core",), ("lightning",)):
        session = make_session(tmp_path, adapters=adapters, latent_models=latents())
        store = AnalysisRunner(**session, root=tmp_path / adapters[0]).run({"a": AnalysisMode.ablation})["a"]
        found[adapters] = tables(AnalysisCache.of(store))
    assert_same_rows(found["lightning",], found["core",])


@pytest.mark.parametrize(
    ("stack", "modes"),
    [("core", [*AnalysisMode]), ("bridge", [AnalysisMode.ablation]), ("hooked", [AnalysisMode.attr_patching])],
)
def test_callback_and_step_give_the_numbers_of_the_runner(tmp_path, stack, modes):
    names, settings = stack_options(stack)
    session = make_session(tmp_path, stack=stack, latent_models=latents())
    expected = [tables(run_analysis(**session, analysis_cfg=AnalysisCfg(mode=mode))) for mode in modes]

    adapters = ("lightning", *names)
    by_callback = [AnalysisCfg(mode=mode) for mode in modes]
    session = make_session(
        tmp_path, adapters=adapters, module_cls=it.ClassificationModule, latent_models=latents(), **settings
    )
    trainer = Trainer(accelerator="cpu", callbacks=[AnalysisCallback(*by_callback)], default_root_dir=tmp_path, **QUIET)
    [metrics] = trainer.test(**session, verbose=False)
    assert set(metrics) == {"test_loss", "test_accuracy"}
    for cfg, rows in zip(by_callback, expected, strict=True):
        assert_same_rows(tables(cfg.analysis_cache), rows)

    session = make_session(
        tmp_path, adapters=adapters, module_cls=AnalysesInItsTestStep, latent_models=latents(), **settings
    )
    for mode, rows in zip(modes, expected, strict=True):
        session["model"].analysis_cfg = by_step = AnalysisCfg(mode=mode)
        Trainer(accelerator="cpu", default_root_dir=tmp_path, **QUIET).test(**session, verbose=False)
        assert_same_rows(tables(by_step.analysis_cache), rows)
        assert not any(loss.is_inference() for loss in by_step.analysis_cache.loss)


def test_a_cache_that_is_full_already_is_refused(tmp_path):
    session = make_session(tmp_path, adapters=("lightning",), module_cls=it.ClassificationModule)
    callback = AnalysisCallback(AnalysisCfg())
    trainer = Trainer(accelerator="cpu", callbacks=[callback], default_root_dir=tmp_path, **QUIET)
    trainer.test(**session, verbose=False)
    with pytest.raises(it.AnalysisError, match="clean_no_sae holds 3 batches already. Give each AnalysisCfg a new"):
        trainer.test(**session, verbose=False)


def test_results_that_several_processes_would_keep_apart_are_refused(tmp_path):
    session = make_session(tmp_path, adapters=("lightning",), module_cls=AnalysesInItsTestStep)
    module, cfg = session["model"], AnalysisCfg()
    module.analysis_cfg = cfg
    state = SimpleNamespace(stage=None)
    module._trainer = SimpleNamespace(world_size=2, callbacks=[AnalysisCallback(AnalysisCfg())], state=state)
    batch = next(iter(session["datamodule"].val_dataloader()))
    with pytest.raises(it.AnalysisError, match="clean_no_sae runs in 2 processes, .*Give AnalysisCallback.analysis_cf"):
        module.test_step(batch, 0)
    with pytest.raises(it.AnalysisError, match="runs in 2 processes"):
        AnalysisEngine.in_memory(module, cfg).analyse(0, next(iter(session["datamodule"].val_dataloader())))
    store = AnalysisRunner(**session, root=tmp_path / "stores").run({"a": AnalysisCfg()})["a"]  # these join in a folder
    assert store.complete
    state.stage = "test"
    with pytest.raises(it.AnalysisError, match="run into a store while the trainer runs a loop in 2 processes"):
        AnalysisRunner(**session, root=tmp_path / "within").run({"a": AnalysisCfg()})


@pytest.mark.parametrize(("processes", "n_rows"), [(2, 7)])
def test_processes_share_the_batches_and_merge_row_for_row(tmp_path, processes, n_rows):
    """7 rows in batches of 3 are 3 batches for 2 processes, which does not divide evenly."""
    with one_thread():
        *_, expected = analyse(tmp_path, 1, n_rows)
    run_ranks(Path(__file__).with_name("ddp_analysis.py"), tmp_path, processes, n_rows, processes=processes)
    for cfg in expected:
        alone = tables(cfg.analysis_cache)
        assert len(alone["examples"]) == n_rows
        for rank in range(processes):
            merged = AnalysisCache.of(tmp_path / f"rank{rank}" / str(cfg.mode))
            assert tables(merged) == alone, (cfg.mode, rank)
    [folder] = (tmp_path / "stores").iterdir()
    store = AnalysisStore.open(folder)
    assert (store.complete, store.manifest.world_size, store.n_examples) == (True, processes, n_rows)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 6, 7, 8])
def test_shares_are_whole_batches_equally_many_and_complete(rows, processes):
    data = torch.arange(rows)
    alone = [batch.tolist() for batch in DataLoader(data, batch_size=3)]
    shares = [
        [batch.tolist() for batch in share_whole_batches(DataLoader(data, batch_size=3), processes, rank)]
        for rank in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    sampler = [WholeBatchSampler(data, 3, processes, rank) for rank in range(processes)]
    assert [len(each) for each in sampler] == [sum(map(len, share)) for share in shares]
    kept = {
        sampler[rank].batch_number(index): batch
        for rank, share in enumerate(shares)
        for index, batch in enumerate(share)
        if not sampler[rank].is_repeated(index)
    }
    assert [kept[number] for number in sorted(kept)] == alone


def test_loaders_with_an_order_of_their_own_are_left_alone():
    loader = DataLoader(torch.arange(5), shuffle=True)
    with pytest.warns(UserWarning, match="sampler RandomSampler cannot be shared among 2 processes"):
        assert share_whole_batches(loader, 2, 0) is loader
