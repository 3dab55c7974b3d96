"""What installed packages offer by name: commands, plots, sources of rows, loaders of tokenizers, analysis modes."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import torch

import interpretune as it
from interpretune.analysis import (
    AnalysisCfg,
    AnalysisMode,
    AnalysisRunner,
    ModelInputs,
    QuestionCfg,
    plot,
    run_analysis,
)
from interpretune.circuits.results_of import results_kind
from interpretune.cli.main import EXIT_ERROR, _parser, main
from interpretune.config.shared import ITSharedConfig
from interpretune.models.tokenizer import load_tokenizer
from interpretune.questions import PromptRow, read_rows
from interpretune.reports import offered_plots
from interpretune.reports.offered_plots import opened_results
from interpretune.session.question_rows import read_question_rows
from interpretune.system.offered import COMMANDS, KINDS, MODES, PLOTS, ROWS, addressed
from tests.sessions import make_session
from tests.tiny import saved_tiny_model, tiny_llama, tiny_tokenizer

SAYS = """
    import interpretune as it

    def main(arguments):
        print("said", *arguments)
        if "fail" in arguments:
            raise it.DataError("no such table at https://user:hunter2@example.org/t")
        return {"none": None, "three": 3, "text": "3"}[arguments[0]]
"""
BROKEN = "raise RuntimeError('libacme.so.7 is too old')"


@pytest.fixture
def offer(install):
    """Install a package that offers one thing: ``offer("commands", "say", "main", SOURCE)``."""

    def offer(kind, name, attribute, source, distribution="interpretune-acme"):
        module = distribution.replace("-", "_")
        return install(
            distribution, group=f"interpretune.{kind}", entries={name: f"{module}:{attribute}"}, **{module: source}
        )

    return offer


# ------------------------------------------------------------------------------------------------------------ commands


def test_a_command_gets_what_stands_behind_its_name(offer, capsys):
    offer("commands", "say", "main", SAYS)
    assert main(["say", "none", "--help", "-o", "--x=1"]) == 0
    assert capsys.readouterr().out == "said none --help -o --x=1\n"
    assert main(["say", "three"]) == 3
    assert main(["say", "none", "fail"]) == EXIT_ERROR
    told = capsys.readouterr().err
    assert "error: DataError: no such table at" in told
    assert "hunter2" not in told
    assert main(["say", "text"]) == EXIT_ERROR
    assert "'say' of interpretune-acme 1.2.3 returned a str; it must return its exit status" in capsys.readouterr().err


def test_commands_are_listed_without_an_import(offer, capsys):
    offer("commands", "say", "main", BROKEN)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "of interpretune-acme 1.2.3" in capsys.readouterr().out
    assert "interpretune_acme" not in sys.modules
    assert main(["say"]) == EXIT_ERROR
    told = capsys.readouterr().err
    assert "'say' of interpretune-acme 1.2.3 cannot be imported from 'interpretune_acme:main'" in told
    assert "RuntimeError: libacme.so.7 is too old. Repair it with" in told


def test_core_s_own_commands_stay_and_read_no_metadata(offer, capsys, monkeypatch):
    offer("commands", "tasks", "main", SAYS)
    refusal = COMMANDS.offered()["tasks"].refusal()
    assert "'tasks' of interpretune-acme 1.2.3 is refused: core has one of that name" in str(refusal)
    monkeypatch.setattr("interpretune.cli.main.add_offered_commands", lambda _: pytest.fail("metadata were read"))
    assert main(["tasks", "--json"]) == 0
    assert "agreement" in capsys.readouterr().out


def test_names_of_core_are_those_of_core():
    _, commands = _parser()
    assert sorted(COMMANDS.own) == sorted(commands.choices)
    assert sorted(MODES.own) == sorted(map(str, AnalysisMode))


def test_two_owners_and_wrong_names_are_refused_when_they_are_asked_for(offer, capsys):
    offer("commands", "say", "main", SAYS)
    offer("commands", "say", "main", SAYS, "interpretune-other")
    offer("commands", "Shout", "main", SAYS, "interpretune-loud")
    assert main(["say", "none"]) == EXIT_ERROR
    told = capsys.readouterr().err
    assert "DuplicateAdapterError: interpretune-acme and interpretune-other both offer a command 'say'" in told
    assert main(["Shout", "none"]) == EXIT_ERROR
    assert "names are lower-case letters" in capsys.readouterr().err
    assert main(["tasks", "--json"]) == 0


def test_what_is_no_function_is_refused(offer, capsys):
    offer("commands", "say", "main", "main = 7")
    assert main(["say"]) == EXIT_ERROR
    assert "is a int; its entry point 'interpretune_acme:main' must name a function" in capsys.readouterr().err


def test_the_table_of_kinds_imports_nothing_large():
    code = "import sys; import interpretune.system.offered; print('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    assert len({kind.group for kind in KINDS}) == 5


# ---------------------------------------------------------------------------------------------------------------- rows

TABLE = """
    WORD = ""

    def table(address):
        if address == "empty":
            return {}
        if address == "wrong":
            return 7
        if address == "fails":
            raise KeyError("no such table")
        address = address.rpartition("@")[2]
        rows = [{"prompt": f"{address} {i}{WORD}", "answers": ["a", "b"], "correct": i % 2} for i in range(3)]
        rows[1]["spans"] = {"name": address}
        return rows if address == "one" else {"train": rows[:1], "validation": rows}
"""


CHANGING = """
    CALLS = []

    def table(address):
        CALLS.append(1)
        return [{"prompt": "He" + " has" * len(CALLS), "answers": [" house", " tree"], "correct": 1}]
"""


def test_rows_come_from_a_source_by_name(offer):
    offer("rows", "acme", "table", TABLE)
    rows = read_rows("acme:one")
    assert [row.prompt for row in rows] == ["one 0", "one 1", "one 2"]
    assert [row.correct for row in rows] == [0, 1, 0]
    assert read_rows("acme:two.csv", split="train")[0].prompt == "two.csv 0"
    with pytest.raises(it.DataError, match=r"acme:two has the splits \['train', 'validation'\]"):
        read_rows("acme:two")
    found = read_question_rows(it.ITDataModuleConfig(rows="acme:two.jsonl"))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 1, "validation": 3}
    by_split = read_question_rows(it.ITDataModuleConfig(rows={"test": "acme:one"}))
    assert [row.prompt for row in by_split["test"]] == ["one 0", "one 1", "one 2"]


def test_data_are_known_by_their_content_not_by_their_address(offer):
    offer("rows", "acme", "table", TABLE)
    asked = SimpleNamespace(itdm_cfg=SimpleNamespace(rows=None, data="acme:one"))
    first = it.ITDataModule.source_fingerprint(asked)
    assert first.startswith("validation=")
    assert it.ITDataModule.source_fingerprint(asked) == first
    sys.modules["interpretune_acme"].WORD = "another"
    assert it.ITDataModule.source_fingerprint(asked) != first


@pytest.mark.parametrize("source", [{"rows": "acme:changing"}, {"data": "acme:changing", "text_fields": ["prompt"]}])
def test_a_source_that_changes_between_calls_is_asked_once_for_the_key_and_the_rows(offer, tmp_path, source):
    offer("rows", "acme", "table", CHANGING)
    tokenizer = tiny_tokenizer()
    cfg = it.ITDataModuleConfig(
        tokenizer=tokenizer, cache_dir=tmp_path, signature_columns=["input_ids"], label_field="correct", **source
    )
    datamodule = it.ITDataModule(cfg)
    for expected in (1, 2):
        datamodule.prepare_once()
        assert [1] * expected == sys.modules["interpretune_acme"].CALLS
        datamodule.setup()
        [row] = datamodule.dataset["validation"]
        assert tokenizer.decode(row["input_ids"], skip_special_tokens=True).split().count("has") == expected


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("empty", "'acme' of interpretune-acme 1.2.3 has no rows at 'empty'"),
        ("wrong", "'acme' of interpretune-acme 1.2.3 returned a int. It must return mappings"),
        ("fails", "'acme' of interpretune-acme 1.2.3 failed: KeyError: 'no such table'"),
    ],
)
def test_what_is_wrong_with_a_source_names_its_package(offer, address, message):
    offer("rows", "acme", "table", TABLE)
    with pytest.raises(it.DataError, match=message):
        read_rows(f"acme:{address}")


def test_a_source_that_is_not_there_is_looked_for_and_told(offer, monkeypatch):
    offer("rows", "acme", "table", BROKEN)

    def no_hub(*_):
        raise OSError("no hub")

    monkeypatch.setattr("datasets.load_dataset", no_hub)
    with pytest.raises(it.DataError, match=r"nor does it name a source that an installed package offers \(acme\)"):
        read_rows("acne:one")
    with pytest.raises(
        it.AdapterImportError, match="source of rows 'acme' of interpretune-acme 1.2.3 cannot be imported"
    ):
        read_rows("acme:one")


def test_paths_and_schemes_are_no_names(offer):
    offer("rows", "https", "table", TABLE)
    assert "https" in ROWS.offered()
    assert addressed(ROWS, "https://example.org/rows.jsonl") is None
    for text in ("c:rows", "rows", ":rows", "A:rows", 7, None):
        assert addressed(ROWS, text) is None


# ---------------------------------------------------------------------------------------------------------- tokenizers

LOADS = """
    from transformers import AutoTokenizer

    def load(address, **options):
        if address == "wrong":
            return address
        return AutoTokenizer.from_pretrained(address, **options)
"""


def test_a_tokenizer_comes_from_a_loader_by_name(offer):
    offer("tokenizers", "acme", "load", LOADS)
    folder = saved_tiny_model("llama")
    cfg = ITSharedConfig(tokenizer_name=f"acme:{folder}", tokenizer_kwargs={"padding_side": "left"})
    found, plain = load_tokenizer(cfg), load_tokenizer(ITSharedConfig(tokenizer_name=folder))
    assert found.get_vocab() == plain.get_vocab()
    assert found.padding_side == "left"
    assert "attention_mask" in found.model_input_names
    with pytest.raises(it.ModelLoadError, match="returned a str; it must return a tokenizer of transformers"):
        load_tokenizer(ITSharedConfig(tokenizer_name="acme:wrong"))
    with pytest.raises(it.ModelLoadError, match=r"Installed packages load tokenizers for: acme\."):
        load_tokenizer(ITSharedConfig(tokenizer_name="/nowhere/at/all"))


# --------------------------------------------------------------------------------------------------------------- plots

DRAWS = """
    import plotly.graph_objects as go

    def histogram(results, n=3):
        if n == 0:
            return []
        return go.Figure(layout={"title": f"{type(results).__name__} {n}"})
"""


@pytest.fixture
def effects_folder(tmp_path):
    model, tokenizer = tiny_llama().eval(), tiny_tokenizer()
    it.effects(
        model, tokenizer, ["He has"], [" house", " tree"], correct=0, units=it.Neurons(1), store=tmp_path / "effects"
    )
    return tmp_path / "effects"


def test_a_plot_is_made_by_name_from_code_and_from_the_command_line(offer, effects_folder, tmp_path, capsys):
    offer("plots", "histogram", "histogram", DRAWS)
    (figure,) = plot(effects_folder, "histogram", tmp_path / "figures", n=5)
    assert figure.layout.title.text == "Effects 5"
    assert "Effects 5" in (tmp_path / "figures" / "histogram.html").read_text()
    assert main(["plot", "unit_effects", str(effects_folder), "-o", str(tmp_path / "more")]) == 0
    assert (tmp_path / "more" / "unit_effects.html").exists()
    assert main(["plot", "histogrm", str(effects_folder)]) == EXIT_ERROR
    told = capsys.readouterr().err
    assert "no plot 'histogrm'. There are latent_effects, unit_effects, histogram. Did you mean 'histogram'?" in told
    with pytest.raises(it.AnalysisError, match="made nothing; it must return a plotly"):
        plot(effects_folder, "histogram", n=0)
    with pytest.raises(it.AnalysisError, match="of interpretune-acme 1.2.3 failed: TypeError: .*unexpected keyword"):
        plot(effects_folder, "histogram", m=0)
    with pytest.raises(it.AnalysisError, match="ask for 'unit_effects'"):
        plot(effects_folder, "latent_effects")


def test_a_plot_gets_results_of_every_method_as_what_they_are(tmp_path):
    model, tokenizer, row = tiny_llama().eval(), tiny_tokenizer(), PromptRow("He has", (" house", " tree"), 0, "He is")
    units, store = it.Neurons(1), tmp_path / "on"
    it.effects_on(model, tokenizer, [row], units=units, on=it.Neurons(2), store=store)
    it.node_patching(model, tokenizer, [row], store=tmp_path / "nodes")
    edges = it.component_edges(model, tokenizer, [row], store=tmp_path / "edges")
    it.path_patching(model, tokenizer, [row], edges=edges.top(1), store=tmp_path / "paths")
    found = {name: opened_results(tmp_path / name) for name in ("on", "nodes", "edges", "paths")}
    assert [type(item).__name__ for item in found.values()] == [
        *("NodeEffects", "PatchedNodes", "ComponentEdges", "ComponentEdges"),
    ]
    assert plot(store, "unit_effects", tmp_path / "figures")
    with pytest.raises(it.AnalysisError, match="is of effects of units or of a lens, and ComponentEdges are none"):
        plot(found["edges"], "unit_effects")


def test_every_method_of_a_question_has_a_class_that_reads_it():
    methods = get_args(get_type_hints(QuestionCfg)["method"])
    assert {method: results_kind(method) for method in methods if results_kind(method) is None} == {}
    assert results_kind("attribution_graph") is it.circuits.AttributionGraphs
    assert results_kind("exact", of_units=True) is it.circuits.NodeEffects


def test_names_of_plots_are_those_of_core():
    assert sorted(PLOTS.own) == sorted(offered_plots.OWN)


# --------------------------------------------------------------------------------------------------------------- modes

MODE = """
    from interpretune.operations import operation
    from interpretune.operations import Field

    @operation(writes=[Field("surprise", "float64", about="minus the log probability of the likeliest token")])
    def surprise(answer_logits):
        return {"surprise": -answer_logits.double().log_softmax(-1).amax(-1) * FACTOR}

    FACTOR = 1.0

    def mode(cfg, latent_models):
        if cfg.row_budget == 1:
            return [7]
        if cfg.row_budget == 2:
            return ["no_such_operation"]
        return ["answer_positions", "plain_forward", surprise]
"""


def test_a_mode_runs_through_the_engine_and_is_named_by_its_store(offer, tmp_path):
    offer("modes", "surprise", "mode", MODE)
    session = make_session(tmp_path / "session", "llama", "core")
    cfg = AnalysisCfg(mode="surprise")
    assert copy.deepcopy(cfg.mode) == cfg.mode == "surprise"
    assert pickle.loads(pickle.dumps(cfg.mode)).offer == cfg.mode.offer
    seen = run_analysis(**session, analysis_cfg=cfg)
    runner = AnalysisRunner(session.module, session.datamodule, tmp_path / "stores")
    store = runner.run({"mine": AnalysisCfg(mode="surprise")})["mine"]
    assert store.manifest.about["mode"] == {"name": "surprise", "distribution": "interpretune-acme", "version": "1.2.3"}
    stored = torch.cat([batch["surprise"] for batch in store.batches()])
    wanted = torch.cat([values["surprise"] for values in (batch.further for batch in seen.batches)])
    torch.testing.assert_close(stored, wanted)
    loader, backend = session.datamodule.test_dataloader(), session.module.backend
    plain = [backend.run(ModelInputs.from_batch(session.module.batch_to_device(batch))) for batch in loader]
    torch.testing.assert_close(stored, torch.cat([-item.double().log_softmax(-1).amax(-1).detach() for item in plain]))
    assert runner.run({"again": "surprise"})["again"].folder == store.folder
    changed = sys.modules["interpretune_acme"]
    changed.FACTOR = 2.0
    assert runner.run({"again": "surprise"})["again"].folder != store.folder
    for budget, error, message in (
        (1, it.AdapterSignatureError, "gave int; it must return operations"),
        (2, it.AnalysisError, "no operation 'no_such_operation'"),
    ):
        with pytest.raises(error, match=message):
            run_analysis(**session, analysis_cfg=AnalysisCfg(mode="surprise", row_budget=budget))
    it.it_session_end(**session)


def test_a_mode_that_nobody_offers_is_refused_with_those_that_there_are(offer):
    offer("modes", "surprise", "mode", MODE)
    offer("modes", "ablation", "mode", MODE, "interpretune-other")
    with pytest.raises(it.ConfigurationError, match="is 'surprised'; the modes are .*, 'surprise'. Did you mean 'surp"):
        AnalysisCfg(mode="surprised")
    assert AnalysisCfg(mode="ablation").mode is AnalysisMode.ablation


def test_a_file_names_an_offered_mode_and_offered_rows(offer, tmp_path, capsys):
    offer("modes", "surprise", "mode", MODE)
    offer("rows", "acme", "table", TABLE, "interpretune-rows")
    folder = saved_tiny_model("llama")
    config = {
        "session": {
            "shared_cfg": {"model_name_or_path": str(folder)},
            "datamodule_cfg": {"rows": "acme://user:hunter2@Ada sees", "answers": [" house", " tree"], "correct": 0},
            "module_cfg": {"device": "cpu"},
        },
        "analyses": {"mine": {"mode": "surprise"}},
        "runner": {"root": str(tmp_path / "stores")},
    }
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config))
    assert main(["run", str(file), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["analyses"]
    assert told["rows"] == 3
    written = [path.read_bytes() for path in (tmp_path / "stores").rglob("*") if path.is_file()]
    assert any(b"acme://" in text for text in written)
    assert not any(b"hunter2" in text for text in written)
    with pytest.raises(SystemExit):
        main(["run", str(file), "--analyses.mine.mode", "surprised"])
    assert "is 'surprised'" in capsys.readouterr().err
