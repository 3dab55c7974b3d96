"""What is in event files, read as TensorBoard reads them, and when there are none."""

import threading

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import interpretune as it
from interpretune.analysis import AnalysisCfg, AnalysisRunner, run_analysis
from interpretune.testing import Bench, RandomDictionary, save_tiny_model
from interpretune_tensorboard.conformance import TensorBoardConformance
from interpretune_tensorboard.event_files import write_run
from interpretune_tensorboard.plain_values import markdown_table

LARGEST = "tables/latents_by_effects"
SECRET = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def new_session(tmp_path, logs):
    save_tiny_model(tmp_path / "model", "llama")
    bench = Bench(TensorBoardConformance(), tmp_path)

    def make(**settings):
        return bench.new_session(model_folder=tmp_path / "model", **{"tensorboard_dir": logs, **settings})

    yield make
    bench.end_sessions()


def runs_of(folder):
    return {str(path.parent.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def read(path):
    return EventAccumulator(str(path.parent)).Reload()


def text_of(events, tag):
    [event] = events.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_an_analysis_has_its_means_its_tables_and_its_configuration(new_session, logs, tmp_path):
    session = new_session(
        latent_models=[RandomDictionary("layers.1.mlp_out", 32)], tokenizer_kwargs={"token": SECRET}, tensorboard_rows=3
    )
    cfg = AnalysisCfg(mode="attr_patching")
    [store] = AnalysisRunner(**session, root=tmp_path / "stores").run({"first": cfg}).values()
    runs = runs_of(logs)
    assert list(runs) == ["session-001/first"]
    [path] = runs.values()
    events = read(path)

    differences = torch.cat([batch["logit_diffs"] for batch in store.batches(["logit_diffs"])])
    scalars = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert (scalars["rows"], scalars["batches"]) == (7, 3)
    assert scalars["mean/logit_diffs"] == pytest.approx(float(differences.mean()), rel=1e-6)
    [hook] = {row["hook"] for batch in store.latents() for row in batch.to_pylist()}
    entries = [
        (abs(float(values[i, j])), example, int(latent))
        for batch in store.batches(["effects"])
        for values, latents in [(batch["effects"][hook].values, batch["effects"][hook].latents)]
        for i, example in enumerate(batch.examples.tolist())
        for j, latent in enumerate(latents)
    ]
    mean = sum(size for size, *_ in entries) / len(entries)
    assert scalars[f"mean_size/effects/{hook}"] == pytest.approx(mean, rel=1e-6)

    lines = [line.strip("| ").split(" | ") for line in text_of(events, "tables/latents_by_effects").split("\n")]
    assert lines[0] == ["example", "hook", "latent", "effects"]
    assert [(int(line[0]), int(line[2])) for line in lines[2:]] == [item[1:] for item in sorted(entries)[::-1][:3]]
    assert len(text_of(events, "tables/examples").splitlines()) == 2 + 3
    configuration = text_of(events, "configuration")
    assert '"mode": "attr_patching"' in configuration
    assert '"tensorboard_rows": 3' in configuration
    assert "<RandomDictionary>" in configuration
    assert SECRET.encode() not in path.read_bytes()
    assert events.PluginTagToContent("hparams")

    again = new_session(latent_models=[RandomDictionary("layers.1.mlp_out", 32)], tensorboard_dir=tmp_path / "other")
    runner = AnalysisRunner(**again, root=tmp_path / "stores")
    runner.run({"first": AnalysisCfg(mode="attr_patching")})
    assert runner.found == ("first",)
    assert not (tmp_path / "other").exists()  # the store was found, although the log folder is another one


def test_a_loop_has_the_means_of_its_epochs(new_session, logs):
    session = new_session(optimizer_init={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}})
    it.fit(**session, loop_cfg=it.LoopConfig(max_epochs=2, seed=0))
    means = it.validate(**session).metrics
    session.module.log("outside", 1.0)
    fit, validate = (read(runs_of(logs)[f"session-001/{loop}"]) for loop in ("fit", "validate"))
    tags = fit.Tags()["scalars"]
    assert tags
    assert all([event.step for event in fit.Scalars(tag)] == [0, 1] for tag in tags)
    found = {tag: [event.value for event in validate.Scalars(tag)] for tag in validate.Tags()["scalars"]}
    assert found == {f"logged/{name}": [pytest.approx(value, rel=1e-6)] for name, value in means.items()}
    assert session.module.tensorboard_open == {}


def test_an_analysis_has_what_its_steps_log(new_session, logs):
    session = new_session()
    module = session.module
    to_device = module.batch_to_device

    def logs_rows(batch):
        module.log("rows_of_batch", float(len(batch["labels"])))
        return to_device(batch)

    module.batch_to_device = logs_rows
    run_analysis(**session, analysis_cfg=AnalysisCfg(mode="clean_no_sae"))
    events = read(runs_of(logs)["session-001/clean_no_sae"])
    assert [event.value for event in events.Scalars("logged/rows_of_batch")] == [3, 3, 1]


def test_a_run_that_fails_leaves_nothing(new_session, logs):
    session = new_session()
    forward = session.module.model.forward
    calls = []

    def fails_later(*args, **options):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("the third batch")
        return forward(*args, **options)

    session.module.model.forward = fails_later
    with pytest.raises(RuntimeError, match="the third batch"):
        run_analysis(**session, analysis_cfg=AnalysisCfg(mode="clean_no_sae"))
    assert list(logs.rglob("*")) == []
    assert session.module.tensorboard_open == {}
    with pytest.raises(ValueError, match="half of it"):
        write_run(session.module, "half", half_of_it)
    assert list(logs.rglob("*")) == []


def half_of_it(writer):
    writer.add_scalar("there", 1.0)
    writer.flush()
    raise ValueError("half of it")


def test_a_log_folder_that_cannot_be_made_ends_the_run_before_its_first_batch(new_session, logs):
    session = new_session()
    logs.write_text("a file")
    session.module.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(it.OutputError, match=f"log folder {logs} cannot be written .* Set tensorboard_dir"):
        run_analysis(**session, analysis_cfg=AnalysisCfg(mode="clean_no_sae"))


def test_two_sessions_at_once_write_to_folders_of_their_own(new_session, logs):
    sessions = [new_session(), new_session()]
    begin, errors = threading.Barrier(2, timeout=60), []

    def work(session):
        try:
            begin.wait()
            for _ in range(2):
                run_analysis(**session, analysis_cfg=AnalysisCfg(mode="clean_no_sae"))
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    names = ("clean_no_sae", "clean_no_sae-2")
    runs = runs_of(logs)
    assert sorted(runs) == sorted(f"session-00{number}/{name}" for number in (1, 2) for name in names)
    assert all(read(path).Scalars("rows")[0].value == 7 for path in runs.values())
    assert {str(session.module.tensorboard_folder.name) for session in sessions} == {"session-001", "session-002"}


def test_without_a_log_folder_nothing_is_written(new_session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = new_session(tensorboard_dir=None)
    before = set(tmp_path.rglob("*"))
    run_analysis(**session, analysis_cfg=AnalysisCfg(mode="clean_no_sae"))
    assert {path for path in set(tmp_path.rglob("*")) - before if "tfevents" in path.name} == set()
    assert session.module.tensorboard_folder is None


def test_cells_of_tables_keep_to_their_line():
    table = markdown_table([{"text": "a|b\nc", "number": 1 / 3, "none": None}])
    assert table == "| text | number | none |\n| --- | --- | --- |\n| a\\|b c | 0.333333 |  |"
