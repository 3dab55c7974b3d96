"""Runs of plans into stores: equal to the step by step analyses, resumable, and never done twice."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

import interpretune as it
from interpretune.analysis import (
    AnalysisCache,
    AnalysisCfg,
    AnalysisMode,
    AnalysisRunner,
    AnalysisStore,
    SaveCfg,
    plan_of,
    run_analysis,
)
from interpretune.analysis.identity import identify_data
from interpretune.analysis.stored_run import StoredRun
from interpretune.operations import operation
from interpretune.store.fields import Field, Per
from tests.other_process import run_script
from tests.sessions import BATCH_SIZE, N_ROWS, STACKS, make_session
from tests.tiny_latents import RandomDictionary

MODES = tuple(AnalysisMode)
N_BATCHES = -(-N_ROWS // BATCH_SIZE)


def dictionaries() -> list[RandomDictionary]:
    return [
        RandomDictionary("blocks.0.hook_resid_post", seed=1, skips=True),
        RandomDictionary("blocks.2.hook_mlp_out", seed=2),
    ]


@pytest.fixture(params=[STACKS[0], STACKS[-1]])
def session(request: pytest.FixtureRequest, session_of: Callable[..., it.ITSession]) -> it.ITSession:
    session = session_of("llama", request.param, "left")
    session.module.latent_models = dictionaries()
    return session


@pytest.fixture
def core_session(session_of: Callable[..., it.ITSession]) -> it.ITSession:
    session = session_of("gpt2", "core", "left")
    session.module.latent_models = dictionaries()
    return session


def cfg_of(mode: AnalysisMode) -> AnalysisCfg:
    save = SaveCfg(tokens=True, prompts=True, intermediates=True)
    return AnalysisCfg(mode=mode, analysis_cache=AnalysisCache(save))


def rows(table: pa.Table) -> list[dict[str, Any]]:
    return table.to_pylist()


class Forwards:
    """Counts forwards of a model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.count = 0
        self._handle = model.register_forward_hook(self._counted)

    def _counted(self, *_: Any) -> None:
        self.count += 1

    def identity(self) -> None:
        """No result depends on the count."""

    def __enter__(self) -> Forwards:
        return self

    def __exit__(self, *_: Any) -> None:
        self._handle.remove()


def same(found: Any, wanted: Any, where: str = "") -> None:
    """Two values of fields are equal up to rounding: sharing a pass changes nothing else."""
    if isinstance(wanted, Mapping):
        assert found.keys() == wanted.keys(), where
        for name in wanted:
            same(found[name], wanted[name], f"{where} {name}")
    elif isinstance(wanted, Tensor):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5, msg=lambda text: f"{where}: {text}")
    elif hasattr(wanted, "latents"):
        for part in type(wanted).__attrs_attrs__:
            same(getattr(found, part.name), getattr(wanted, part.name), f"{where}.{part.name}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for one, other in zip(found, wanted, strict=True):
            same(one, other, where)
    else:
        assert found == wanted, where


def test_all_modes_in_one_pass_give_what_each_gives_alone(session: it.ITSession, tmp_path: Path) -> None:
    stores = AnalysisRunner(**session, root=tmp_path).run({str(mode): cfg_of(mode) for mode in MODES})
    for mode in MODES:
        alone = run_analysis(**session, analysis_cfg=cfg_of(mode))
        stored = AnalysisCache.of(stores[mode])
        assert stores[mode].complete
        assert len(stored.batches) == len(alone.batches) == N_BATCHES
        for name in vars(next(iter(alone.batches))):
            same(list(getattr(stored, name)), list(getattr(alone, name)), f"{mode} {name}")


def test_modes_of_one_pass_share_their_spliced_run(core_session: it.ITSession, tmp_path: Path) -> None:
    runner = AnalysisRunner(**core_session, root=tmp_path)
    modes = {str(m): AnalysisCfg(mode=m, self_check=False) for m in ("clean_w_sae", "attr_patching")}
    runner.dry_run(modes)  # the backend has a look at the model before it replays for the first time
    with Forwards(core_session.module.model) as together:
        runner.run(modes)
    alone = 0
    for name, cfg in modes.items():
        with Forwards(core_session.module.model) as counted:
            AnalysisRunner(**core_session, root=tmp_path / "alone").run({name: cfg})
        alone += counted.count
    assert alone == together.count + N_BATCHES


def test_what_is_there_is_not_run_again(core_session: it.ITSession, tmp_path: Path) -> None:
    runner = AnalysisRunner(**core_session, root=tmp_path)
    with Forwards(core_session.module.model) as counted:
        first = runner.run({"ablation": AnalysisMode.ablation})["ablation"]
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
        counted.count = 0
        second = runner.run({"ablation": AnalysisMode.ablation})["ablation"]
    assert counted.count == 0
    assert second.folder == first.folder
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == files


class Stopped(Exception):
    pass


@pytest.fixture
def stops_in_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def stop(number: int) -> None:
        inner, seen = StoredRun.write, [0]

        def write(*args: Any) -> None:
            seen[0] += 1
            if seen[0] == number:
                raise Stopped
            inner(*args)

        monkeypatch.setattr(StoredRun, "write", write)

    return stop


def test_a_run_that_was_stopped_goes_on_with_the_next_batch(
    core_session: it.ITSession,
    tmp_path: Path,
    stops_in_batch: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = AnalysisRunner(**core_session, root=tmp_path / "whole").run({"a": AnalysisMode.ablation})["a"]
    runner = AnalysisRunner(**core_session, root=tmp_path / "stopped")
    stops_in_batch(3)
    with pytest.raises(Stopped):
        runner.run({"a": AnalysisMode.ablation})
    monkeypatch.undo()
    left = runner.dry_run({"a": AnalysisMode.ablation})["a"]
    assert (left.remaining, left.batches, left.examples) == (N_BATCHES - 2, N_BATCHES, N_ROWS)
    resumed = runner.run({"a": AnalysisMode.ablation})["a"]
    tables = [pa.Table.from_batches(list(store.record_batches())) for store in (resumed, whole)]
    assert rows(tables[0]) == rows(tables[1])
    assert resumed.manifest.key == whole.manifest.key


def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_run.py")
    for folder, kills in (("killed", (2, 2, 0)), ("whole", (0,))):
        for batch in kills:
            run_script(script, tmp_path / folder, batch, returncode=-signal.SIGKILL if batch else 0)
    for name in ("ablation", "clean"):
        killed, whole = (next((tmp_path / folder / "stores").glob(f"{name}-*")) for folder in ("killed", "whole"))
        found, wanted = AnalysisStore.open(killed), AnalysisStore.open(whole)
        found.verify()
        assert found.manifest.key == wanted.manifest.key
        tables = [pa.Table.from_batches(list(s.record_batches())).sort_by("example") for s in (found, wanted)]
        assert rows(tables[0]) == rows(tables[1])


def test_everything_that_changes_a_result_changes_its_folder(core_session: it.ITSession, tmp_path: Path) -> None:
    module = core_session.module

    def folder(analysis: Any = "clean_w_sae", **settings: Any) -> str:
        return AnalysisRunner(**core_session, root=tmp_path, **settings).dry_run({"a": analysis})["a"].folder.name

    found = [folder(), folder("ablation"), folder(limit=BATCH_SIZE), folder(seed=1)]
    name = module.latent_models[0].hook_point + ".hook_sae_acts_post"
    found.append(folder(AnalysisCfg(mode="clean_w_sae", names_filter=[name])))
    module.latent_models = [*dictionaries()[:1], RandomDictionary("blocks.2.hook_mlp_out", seed=3)]
    found.append(folder())
    module.latent_models = dictionaries()
    weight = next(module.model.parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] += 1
        found.append(folder())
        weight.copy_(before)
    assert len(set(found)) == len(found)
    limited = AnalysisRunner(**core_session, root=tmp_path, limit=BATCH_SIZE).dry_run({"a": "clean_w_sae"})["a"]
    assert limited.examples == BATCH_SIZE
    assert folder() == found[0] == folder(AnalysisCfg(mode="clean_w_sae", self_check=False))


CERTAINTY = Field("certainty", "float", about="probability of the likelier answer")


@operation(writes=CERTAINTY)
def certainty(answers: Tensor) -> Tensor:
    return answers.softmax(dim=-1).amax(dim=-1)


@operation(writes=Field("mean_certainty", per=Per.run))
def mean_certainty(certainty: Any, logit_diffs: Any) -> pa.Table:
    seen, diffs = torch.cat(list(certainty)), torch.cat(list(logit_diffs))
    return pa.table({"mean": [seen.mean().item()], "diff": [diffs.mean().item()]})


def test_operations_of_a_user_run_beside_those_of_a_mode(core_session: it.ITSession, tmp_path: Path) -> None:
    cfg = AnalysisCfg(mode=AnalysisMode.clean_w_sae)
    plan = plan_of(cfg, core_session.module.latent_models, [certainty, mean_certainty])
    store = AnalysisRunner(**core_session, root=tmp_path).run({"mine": plan})["mine"]
    diffs = torch.cat([batch["logit_diffs"] for batch in store.batches(["logit_diffs"])])
    found = torch.cat([batch["certainty"] for batch in store.batches(["certainty"])])
    torch.testing.assert_close(found, torch.sigmoid(diffs.abs()))
    (row,) = rows(store.tables["mean_certainty"])
    assert row == {"mean": pytest.approx(found.mean().item()), "diff": pytest.approx(diffs.mean().item())}
    store.verify()


@operation(writes=Field("drawn", "float32"))
def draw(orig_labels: Tensor) -> Tensor:
    return torch.rand(len(orig_labels))


@operation(writes=Field("drawn_before", "float32"))
def draw_before(orig_labels: Tensor) -> Tensor:
    return torch.rand(2 * len(orig_labels))[: len(orig_labels)]


def test_what_is_drawn_follows_the_seed_not_the_order_of_work(core_session: it.ITSession, tmp_path: Path) -> None:
    plan = plan_of(AnalysisCfg(), [], [draw])

    def drawn(root: str, seed: int) -> list[float]:
        store = AnalysisRunner(**core_session, root=tmp_path / root, seed=seed).run({"a": plan})["a"]
        return torch.cat([batch["drawn"] for batch in store.batches(["drawn"])]).tolist()

    torch.manual_seed(1)
    first = drawn("one", 0)
    torch.manual_seed(2)
    assert drawn("two", 0) == first != drawn("three", 1)
    assert len(set(first)) == N_ROWS
    both = {"b": plan_of(AnalysisCfg(), [], [draw_before]), "a": plan}
    beside = AnalysisRunner(**core_session, root=tmp_path / "beside").run(both)["a"]
    assert torch.cat([batch["drawn"] for batch in beside.batches(["drawn"])]).tolist() == first


def test_a_store_says_who_was_asked_and_tells_no_folders(core_session: it.ITSession, tmp_path: Path) -> None:
    about = AnalysisRunner(**core_session, root=tmp_path).run({"a": "clean_w_sae"})["a"].manifest.about
    assert about["model"]["class"].endswith("GPT2LMHeadModel")
    assert [item["hook_point"] for item in about["latent_models"]] == [
        "blocks.0.hook_resid_post",
        "blocks.2.hook_mlp_out",
    ]
    assert about["data"]["examples"] == N_ROWS
    assert about["data"]["source"]["validation"] == "validation.jsonl"
    assert about["configs"]["datamodule"]["eval_batch_size"] == BATCH_SIZE
    assert about["stack"] == ["core"]
    assert {"interpretune-core", "torch", "transformers"} <= about["versions"].keys()
    told = (tmp_path / next(tmp_path.iterdir()).name / "manifest.json").read_text(encoding="utf-8")
    assert str(core_session.module.it_cfg.model_name_or_path) not in told


def test_a_dry_run_tells_and_writes_nothing(core_session: it.ITSession, tmp_path: Path) -> None:
    told = AnalysisRunner(**core_session, root=tmp_path / "out").dry_run({"a": AnalysisMode.attr_patching})["a"]
    assert (told.examples, told.batches, told.remaining, told.forwards) == (N_ROWS, N_BATCHES, N_BATCHES, N_BATCHES)
    assert "gradients_of_alive(" in str(told)
    assert told.bytes > 0
    assert not (tmp_path / "out").exists()


def test_ranks_share_the_batches_and_the_last_completes_the_store(
    core_session: it.ITSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = AnalysisRunner(**core_session, root=tmp_path / "alone").run({"a": AnalysisMode.ablation})["a"]
    complete = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        store = AnalysisRunner(**core_session, root=tmp_path / "ranks").run({"a": AnalysisMode.ablation})["a"]
        complete.append(store.complete)
    assert complete == [False, True]
    tables = [pa.Table.from_batches(list(item.record_batches())).sort_by("example") for item in (store, alone)]
    assert rows(tables[0]) == rows(tables[1])


def test_wrong_runs_are_refused(core_session: it.ITSession, tmp_path: Path) -> None:
    runner = AnalysisRunner(**core_session, root=tmp_path)
    with pytest.raises(it.ConfigurationError, match=r"The analysis '\.\./a' names a folder"):
        runner.run({"../a": AnalysisMode.clean_no_sae})
    with pytest.raises(it.ConfigurationError, match=r"limit is 0; give a number of rows from 1"):
        AnalysisRunner(**core_session, root=tmp_path, limit=0)
    with pytest.raises(it.ConfigurationError, match=r"AnalysisRunner\(\*\*session, root=\.\.\.\)"):
        AnalysisRunner(root=tmp_path)
    core_session.module.latent_models = []
    with pytest.raises(it.AnalysisError, match=r"The mode ablation needs latent models"):
        runner.run({"a": AnalysisMode.ablation})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def own_session(tmp_path: Path) -> Iterator[it.ITSession]:
    """A session that a test may change."""
    session = make_session(tmp_path / "session")
    yield session
    it.it_session_end(**session)


def loader_like(session: it.ITSession, **settings: Any) -> torch.utils.data.DataLoader:
    loader = session.datamodule.test_dataloader()
    return torch.utils.data.DataLoader(loader.dataset, collate_fn=loader.collate_fn, **settings)


def test_a_loader_that_shuffles_is_refused(own_session: it.ITSession, tmp_path: Path) -> None:
    rows = torch.utils.data.RandomSampler(range(N_ROWS), generator=torch.Generator().manual_seed(0))
    shuffled = loader_like(own_session, batch_sampler=torch.utils.data.BatchSampler(rows, 2, drop_last=False))
    own_session.datamodule.test_dataloader = lambda: shuffled
    with pytest.raises(it.AnalysisError, match=r"Batch 0 is not what it was .* shuffles its rows or draws at random"):
        AnalysisRunner(**own_session, root=tmp_path / "out").run({"a": "clean_no_sae"})


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter([self.rows[i] for i in range(len(self.rows))])


def test_a_stream_of_rows_is_analysed_like_the_rows(own_session: it.ITSession, tmp_path: Path) -> None:
    wanted = AnalysisRunner(**own_session, root=tmp_path / "rows").run({"a": "clean_no_sae"})["a"]
    loader = own_session.datamodule.test_dataloader()
    stream = torch.utils.data.DataLoader(Stream(loader.dataset), batch_size=BATCH_SIZE, collate_fn=loader.collate_fn)
    own_session.datamodule.test_dataloader = lambda: stream
    found = AnalysisRunner(**own_session, root=tmp_path / "stream").run({"a": "clean_no_sae"})["a"]
    assert found.manifest.key == wanted.manifest.key
    tables = [pa.Table.from_batches(list(store.record_batches())) for store in (found, wanted)]
    assert rows(tables[0]) == rows(tables[1])


def test_the_order_of_batches_is_in_the_key_of_data() -> None:
    batches = [{"labels": torch.tensor([label])} for label in (0, 1)]
    found = [identify_data(item) for item in (batches, batches[::-1])]
    assert set(found[0].batches) == set(found[1].batches)
    assert found[0].fingerprint != found[1].fingerprint


def test_a_batch_without_labels_is_refused(own_session: it.ITSession, tmp_path: Path) -> None:
    own_session.datamodule.test_dataloader = lambda: [{"input_ids": torch.ones(1, 2)}]
    with pytest.raises(it.DataError, match=r"needs the entry 'labels'; this one has input_ids"):
        AnalysisRunner(**own_session, root=tmp_path / "out").run({"a": "clean_no_sae"})


def test_configuration_loss_and_code_of_latent_models_are_part_of_the_key(
    own_session: it.ITSession, tmp_path: Path
) -> None:
    module = own_session.module
    runner = AnalysisRunner(**own_session, root=tmp_path / "out")

    def key() -> str:
        return runner.dry_run({"a": "clean_w_sae"})["a"].folder.name

    module.latent_models = dictionaries()
    found = [key()]
    module.model.config.layer_norm_epsilon *= 10
    found.append(key())
    module.model.config.layer_norm_epsilon /= 10

    class Doubled(RandomDictionary):
        def encode(self, activations: Tensor) -> Tensor:
            return 2 * super().encode(activations)

    tripled = type("Doubled", (RandomDictionary,), {"encode": lambda self, x: 3 * RandomDictionary.encode(self, x)})
    for kind in (Doubled, tripled):
        module.latent_models = [kind("blocks.0.hook_resid_post", seed=1)]
        found.append(key())
    module.latent_models = dictionaries()
    for smoothing in (0.1, 0.2):
        module.loss_fn = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
        found.append(key())
    del module.loss_fn
    assert len(set(found)) == len(found)
    assert key() == found[0]


def test_the_same_analysis_by_another_name_is_found(core_session: it.ITSession, tmp_path: Path) -> None:
    runner = AnalysisRunner(**core_session, root=tmp_path)
    with Forwards(core_session.module.model) as counted:
        first = runner.run({"one": "clean_w_sae"})["one"]
        counted.count = 0
        second = runner.run({"other": "clean_w_sae"})["other"]
    assert (counted.count, second.folder) == (0, first.folder)


def test_answer_positions_of_another_analysis_must_be_those_of_the_batches(
    core_session: it.ITSession, tmp_path: Path
) -> None:
    runner = AnalysisRunner(**core_session, root=tmp_path)
    clean = AnalysisCache.of(runner.run({"clean": "clean_w_sae"})["clean"])
    cfg = AnalysisCfg(mode="ablation", answer_indices=clean.answer_indices, base_logit_diffs=clean.logit_diffs)
    assert runner.run({"a": cfg})["a"].complete
    wrong = AnalysisCfg(mode="clean_no_sae", answer_indices=[torch.tensor([99])] * N_BATCHES)
    with pytest.raises(it.AnalysisError, match=r"answer_indices of batch 0 are \[99\]"):
        AnalysisRunner(**core_session, root=tmp_path / "wrong").run({"a": wrong})


def test_a_batch_that_a_power_cut_left_half_written_is_run_again(
    core_session: it.ITSession,
    tmp_path: Path,
    stops_in_batch: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = AnalysisRunner(**core_session, root=tmp_path)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    stops_in_batch(2)
    AnalysisRunner(**core_session, root=tmp_path).run({"a": "ablation"})
    monkeypatch.undo()
    stops_in_batch(2)
    with pytest.raises(Stopped):
        runner.run({"a": "ablation"})
    monkeypatch.undo()
    for path in tmp_path.rglob("*.arrow"):
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.warns(UserWarning, match=r"is damaged .* will be run again"):
        resumed = runner.run({"a": "ablation"})["a"]
    resumed.verify()
    assert resumed.n_examples == N_ROWS


def test_a_view_of_a_store_without_labels_says_so(core_session: it.ITSession, tmp_path: Path) -> None:
    plan = plan_of(AnalysisCfg(), [], keep=["preds"])
    cache = AnalysisCache.of(AnalysisRunner(**core_session, root=tmp_path).run({"a": plan})["a"])
    assert [len(item) for item in cache.preds] == [3, 3, 1]
    for look in (lambda: cache.orig_labels, lambda: cache.batches):
        with pytest.raises(it.AnalysisError, match=r"The store keeps no .*orig_labels"):
            look()
