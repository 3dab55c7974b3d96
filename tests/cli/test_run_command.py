"""``interpretune run``: what a configuration file may say, how it is refused, and that results are made once."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

import interpretune as it
from interpretune.analysis import AnalysisMode, AnalysisStore, EvidenceCfg, QuestionCfg
from interpretune.analysis.stored_run import StoredRun
from interpretune.circuits import NodeEffects
from interpretune.cli.main import EXIT_ERROR, EXIT_INTERRUPTED, main
from interpretune.cli.run_config import read_run
from interpretune.cli.written_analysis import WrittenAnalysis
from interpretune.questions import Effects, LogProb
from interpretune.questions.written_units import written_units
from interpretune.system.credentials import HIDDEN
from tests.sessions import BATCH_SIZE, N_ROWS, write_rows
from tests.tiny import nli_rows

ROOT = Path(__file__).parents[2]
needs_saelens = pytest.mark.skipif(importlib.util.find_spec("interpretune_saelens") is None, reason="no SAELens")
CERTAINTY = """
from interpretune.store.fields import Field
from interpretune.operations import operation

@operation(writes=Field("certainty", "float"))
def certainty(answers):
    return answers.softmax(dim=-1).amax(dim=-1)
"""
CLASSES = '''
from dataclasses import dataclass, field
from typing import Any, Callable

import torch

import interpretune as it
from interpretune.analysis import LatentModel


class Module(it.ITModule):
    pass


@dataclass(kw_only=True)
class Prompts(it.PromptConfig):
    shout: bool = False


@dataclass(kw_only=True)
class Extra:
    """Fields of a user.

    Attributes:
        strength: How strong, in %.
    """

    strength: float = 0.5
    dtype: Any = torch.float32
    score: Callable[[float], float] = abs
    direction: torch.Tensor | None = None
    models: list[LatentModel] = field(default_factory=list)


@dataclass(kw_only=True)
class Needed:
    columns: list[str]


@dataclass(kw_only=True)
class Unwritable:
    score: Callable[[float], float]


class Reversed:
    pass
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_folder: Path) -> Iterator[Path]:
    """The current directory: rows, classes of a user, and a folder ``model``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    write_rows(tmp_path / "rows.jsonl", nli_rows(N_ROWS))
    (tmp_path / "mine.py").write_text(CLASSES)
    (tmp_path / "model").symlink_to(gpt2_folder)
    sys.path.append(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mine", None)


def configuration(**parts: Any) -> dict[str, Any]:
    session = {
        "adapter_ctx": ["core"],
        "shared_cfg": {"model_name_or_path": "model"},
        "datamodule_cfg": {
            "data": {"validation": "rows.jsonl"},
            "text_fields": ["premise", "hypothesis"],
            "num_labels": 2,
            "prompt_cfg": {"ctx_question_join": " Question : "},
            "cust_tokenization_pattern": "{task_prompt} <eos> Answer :",
            "eval_batch_size": BATCH_SIZE,
        },
        "module_cfg": {"device": "cpu", "generative_step_cfg": {"answers": ["Yes", "No"]}},
    }
    return {"session": session, "analyses": {"clean": {"mode": "clean_no_sae"}}, **parts}


Write = Callable[..., str]


@pytest.fixture
def write(here: Path) -> Write:
    """Write a configuration, with ``change`` made to it; gives the file's name."""

    def write(change: Callable[[dict[str, Any]], None] | None = None, **parts: Any) -> str:
        written = configuration(**parts)
        if change is not None:
            change(written)
        (here / "run.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
        return "run.yaml"

    return write


def module_cfg(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda written: written["session"]["module_cfg"].update(values)


def printed_config(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["run", *arguments, "--print_config"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["run", *arguments])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


# ------------------------------------------------------------------------------------------------------------- reading


def test_a_file_becomes_the_dataclasses_of_the_library(write: Write) -> None:
    run = read_run([write(runner={"root": "out", "limit": 5, "seed": 3})])
    assert isinstance(run.session.module_cfg, it.ITConfig)
    assert isinstance(run.session.module_cfg.generative_step_cfg, it.GenerativeClassificationConfig)
    assert run.session.module_cfg.generative_step_cfg.answers == ("Yes", "No")
    assert (
        run.session.module_cfg.generative_step_cfg.lm_generation_cfg
        == it.ITConfig().generative_step_cfg.lm_generation_cfg
    )
    assert run.session.datamodule_cfg.prompt_cfg == it.PromptConfig(ctx_question_join=" Question : ")
    assert run.session.datamodule_cfg.data == {"validation": "rows.jsonl"}
    assert run.session.datamodule_cfg.text_fields == ("premise", "hypothesis")
    assert run.session.shared_cfg == it.ITSharedConfig(model_name_or_path="model")
    assert (run.runner.root, run.runner.limit, run.runner.seed) == ("out", 5, 3)
    assert run.analyses == {"clean": WrittenAnalysis(mode=AnalysisMode.clean_no_sae)}
    assert (run.dry_run, run.json) == (False, False)


def test_options_take_precedence_with_short_and_long_names(write: Write) -> None:
    asked = {"mode": "ablation", "row_budget": 2, "objective": "log_prob"}
    file = write(analyses={"my-run": asked, "my_run": "clean_w_sae"})
    options = {
        "--datamodule_cfg.eval_batch_size": "16",
        "--session.datamodule_cfg.prompt_cfg.question_suffix": "7",
        "--datamodule_cfg.data": "{test: other.jsonl}",
        "--root": "out",
        "--runner.limit": "100",
        "--analyses.my-run.row_budget": "64",
        "--analyses.my-run.save.prompts": "true",
        "--analyses.my_run.names_filter+": "a.b",
        "--analyses.third.mode": "attr_patching",
        "--analyses.third.objective": "{logit_diff: {against: mean}}",
        "--module_cfg.optimizer_init": "{class_path: torch.optim.AdamW, init_args: {lr: 1e-3}}",
        "--module_cfg.optimizer_init.init_args.lr": "0.5",
    }
    before = [part for pair in options.items() for part in pair]
    run = read_run([*before[:6], "--json", file, *before[6:], "--dry-run"])
    data = run.session.datamodule_cfg
    assert (data.eval_batch_size, data.data, data.num_labels) == (16, {"test": "other.jsonl"}, 2)
    assert data.prompt_cfg == it.PromptConfig(ctx_question_join=" Question : ", question_suffix="7")
    assert (run.runner.root, run.runner.limit, run.json, run.dry_run) == ("out", 100, True, True)
    assert (run.analyses["my-run"].row_budget, run.analyses["my-run"].mode) == (64, AnalysisMode.ablation)
    assert run.analyses["my-run"].analysis_cache.save_cfg.prompts
    assert run.analyses["my_run"].names_filter == ["a.b"]
    assert run.analyses["third"].mode is AnalysisMode.attr_patching
    assert [run.analyses[name].objective for name in ("my-run", "third")] == [LogProb(), it.LogitDiff("mean")]
    assert run.session.module_cfg.optimizer_init == {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.5}}


def test_classes_and_mixins_of_the_user_are_found_in_the_current_directory(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(written: dict[str, Any]) -> None:
        written["session"]["module_cls"] = "mine.Module"
        written["session"]["datamodule_cfg"]["prompt_cfg"] = {
            "class_path": "mine.Prompts",
            "init_args": {"shout": True},
        }
        written["session"]["datamodule_cfg"]["columns"] = ["a"]
        mixins = {"module_cfg_mixin": "mine.Extra", "datamodule_cfg_mixin": ["mine.Needed"], "module_cfg_name": "Mine"}
        written["session"]["module_cfg"] |= {"auto_comp_cfg": mixins, "strength": 0.25}

    file = write(change)
    run = read_run([file])
    import mine

    assert run.session.module_cls is mine.Module
    assert run.session.datamodule_cfg.prompt_cfg == mine.Prompts(shout=True)
    assert isinstance(run.session.module_cfg, mine.Extra)
    assert type(run.session.module_cfg).__name__ == "Mine"
    assert (run.session.module_cfg.strength, run.session.module_cfg.score(-1)) == (0.25, 1)
    assert isinstance(run.session.datamodule_cfg, mine.Needed)
    assert run.session.datamodule_cfg.columns == ["a"]
    session = it.ITSession(run.session)
    assert isinstance(session.module, mine.Module)
    assert session.module.it_cfg.strength == 0.25
    assert session.datamodule.itdm_cfg.columns == ["a"]

    shown = printed_config([file], capsys)
    assert not {"score", "direction", "models", "dtype"} & set(yaml.safe_load(shown)["session"]["module_cfg"])
    with pytest.raises(SystemExit):
        main(["run", file, "--help"])
    assert "How strong, in %." in capsys.readouterr().out
    assert read_run([file, "--module_cfg.dtype", "float16"]).session.module_cfg.dtype == "float16"


def test_a_printed_configuration_can_be_read_again(
    write: Write, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(written: dict[str, Any]) -> None:
        mixins = {"module_cfg_mixin": "mine.Extra"}
        written["session"]["datamodule_cfg"]["prompt_cfg"] = {"class_path": "mine.Prompts"}
        written["session"]["module_cfg"] |= {
            "auto_comp_cfg": mixins,
            "hf_config": {"class_path": "transformers.GPT2Config", "init_args": {"n_layer": 3}},
            "optimizer_init": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-5}},
        }

    file = write(change, analyses={"a-b": {"mode": "ablation", "keep": ["effects"], "save": {"tokens": True}}})
    shown = printed_config([file, "--limit", "3"], capsys)
    (here / "again.yaml").write_text(shown)
    first, again = read_run([file, "--limit", "3"]), read_run(["again.yaml"])
    assert printed_config(["again.yaml"], capsys) == shown
    assert again.analyses == first.analyses
    assert again.runner == first.runner
    assert again.session.shared_cfg == first.session.shared_cfg
    for kind in ("module_cfg", "datamodule_cfg"):
        one, other = vars(getattr(first.session, kind)), vars(getattr(again.session, kind))
        assert {key: str(value) for key, value in one.items()} == {key: str(value) for key, value in other.items()}
    assert again.session.module_cfg.hf_config.n_layer == 3


def test_without_a_file_the_fields_of_a_stack_are_printed(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    shown = yaml.safe_load(printed_config(["--analyses.clean.mode", "clean_no_sae"], capsys))
    assert shown["session"]["datamodule_cfg"]["eval_batch_size"] == 8
    assert shown["analyses"]["clean"]["self_check"] is True
    assert "Which CONFIG.yaml is it?" in usage_error([], capsys)


def test_fields_of_an_adapter_are_there_where_it_is_stacked(
    adapter_of: Callable[..., None], write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter_of(
        "acme",
        body="""
        @it.hookimpl
        def it_contribute_classes(self):
            import dataclasses
            acme = dataclasses.make_dataclass("Acme", [("volume", int, 11)], bases=(it.ITConfig,), kw_only=True)
            return it.ClassContribution(adapter="acme", module_cfg=(acme,))
        """,
    )
    file = write(module_cfg(volume=5))
    assert main(["run", file]) == EXIT_ERROR
    told = capsys.readouterr().err
    assert "session.module_cfg has no field 'volume'" in told
    assert "Stacked: core; adapters that add fields are named in session.adapter_ctx" in told
    run = read_run([file, "--adapter_ctx", "[acme]"])
    assert run.session.module_cfg.volume == 5
    assert run.session.adapter_ctx == ["acme"]
    assert read_run([file, "--adapter_ctx", "acme"]).session.module_cfg.volume == 5
    with pytest.raises(SystemExit):
        main(["run", "--adapter_ctx", "acme", "--help"])
    assert "--session.module_cfg.volume" in capsys.readouterr().out


@needs_saelens
def test_defaults_of_adapters_keep_their_classes(write: Write, capsys: pytest.CaptureFixture[str], here: Path) -> None:
    from interpretune_saelens import SAELensFromDiskConfig, SAELensTrainConfig
    from interpretune_tlens import ITLensCustomConfig, ITLensFromPretrainedNoProcessingConfig

    saes = [{"path": "sae"}, {"class_path": "interpretune_saelens.SAELensTrainConfig", "init_args": {"hook_name": "h"}}]
    file = write(module_cfg(tl_cfg={"use_bridge": False}, sae_cfgs=saes))
    arguments = [file, "--adapter_ctx", "sae_lens"]
    cfg = read_run(arguments).session.module_cfg
    assert cfg.tl_cfg == ITLensFromPretrainedNoProcessingConfig(use_bridge=False)
    assert cfg.sae_cfgs == (SAELensFromDiskConfig("sae"), SAELensTrainConfig(hook_name="h"))
    (here / "again.yaml").write_text(printed_config(arguments, capsys))
    again = read_run(["again.yaml"]).session.module_cfg
    assert (again.tl_cfg, again.sae_cfgs) == (cfg.tl_cfg, cfg.sae_cfgs)
    model = {"n_layers": 1, "d_model": 8, "d_head": 4, "n_heads": 2, "n_ctx": 16, "act_fn": "gelu", "d_vocab": 30}
    custom = {"class_path": "interpretune_tlens.ITLensCustomConfig", "init_args": {"cfg": model}}
    arguments += ["--module_cfg.tl_cfg", json.dumps(custom)]
    changed = read_run(arguments).session.module_cfg.tl_cfg
    assert isinstance(changed, ITLensCustomConfig)
    assert changed.cfg.d_model == 8
    (here / "again.yaml").write_text(printed_config(arguments, capsys))
    assert read_run(["again.yaml"]).session.module_cfg.tl_cfg.cfg.to_dict() == changed.cfg.to_dict()

    assert main(["run", write(module_cfg(sae_cfgs=[{"pth": "x"}])), "--adapter_ctx", "sae_lens"]) == EXIT_ERROR
    assert "sae_cfgs[0] has no field 'pth'. Did you mean 'path'?" in capsys.readouterr().err
    assert main(["run", write(module_cfg(tl_cfg={"cfg": {}})), "--adapter_ctx", "sae_lens"]) == EXIT_ERROR
    assert "Write class_path: interpretune_tlens.config.ITLensCustomConfig" in capsys.readouterr().err


REQUESTED = """
    @it.hookimpl
    def it_configure_latents(self, request):
        from tests.tiny_latents import RandomDictionary
        return {"latent_models": [RandomDictionary(f"layers.{layer}.resid_post") for layer in request.layers]}

    @it.hookimpl
    def it_report_session(self, module):
        rows = [{"place": item.hook_point, "score": float("nan")} for item in module.latent_models]
        return [it.ReportSection(adapter="acme", title="Dictionaries", rows=rows, note="Random ones.")]
"""


def test_a_file_requests_latent_models_of_any_adapter(
    adapter_of: Callable[..., None], write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter_of("acme", level="latents", body=REQUESTED)

    def change(written: dict[str, Any]) -> None:
        written["session"] |= {"adapter_ctx": ["acme"], "latents": {"layers": [0, 1]}}

    file = write(change, analyses={"spliced": "clean_w_sae"})
    assert read_run([file, "--latents.layers", "[1]"]).session.latents == it.LatentRequest(layers=[1])
    assert main(["run", file, "--json"]) == 0
    [section] = json.loads(capsys.readouterr().out)["report"]
    rows = [{"place": f"layers.{layer}.resid_post", "score": None} for layer in (0, 1)]
    assert section == {"adapter": "acme", "title": "Dictionaries", "rows": rows, "note": "Random ones."}
    assert main(["run", file]) == 0
    assert "Dictionaries\n====" in capsys.readouterr().out
    assert main(["run", file, "--adapter_ctx", "core"]) == EXIT_ERROR
    assert "None of the stacked adapters (core) supplies the latent models" in capsys.readouterr().err
    assert "Did you mean 'layers'?" in usage_error([file, "--latents.layer", "1"], capsys)


# ------------------------------------------------------------------------------------------------------------- refusals


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(written: dict[str, Any]) -> None:
        *steps, last = path.split("/")
        for step in steps:
            written = written.setdefault(step, {})
        written[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("sessionn", {}), "run.yaml has no field 'sessionn'. Did you mean 'session'?"),
        (put("session/adaptr_ctx", []), "session has no field 'adaptr_ctx'. Did you mean 'adapter_ctx'?"),
        (put("session/shared_cfg/model_name", "x"), "session.shared_cfg has no field 'model_name'. Did you mean"),
        (
            put("session/datamodule_cfg/eval_batchsize", 4),
            "session.datamodule_cfg has no field 'eval_batchsize'. Did you mean 'eval_batch_size'?",
        ),
        (
            put("session/datamodule_cfg/prompt_cfg", {"question_sufix": ""}),
            "session.datamodule_cfg.prompt_cfg has no field 'question_sufix'. Did you mean 'question_suffix'?",
        ),
        (
            put("session/module_cfg/generative_step_cfg/lm_generation_cfg", {"max_tokens": 2}),
            "generative_step_cfg.lm_generation_cfg has no field 'max_tokens'. Did you mean 'max_new_tokens'?",
        ),
        (
            put("session/module_cfg/hf_config", {"class_path": "transformers.GPT2Config", "init_args": {"n_layr": 1}}),
            "n_layr",
        ),
        (
            put("session/module_cfg/generative_step_cfg/answers", [True, False]),
            "generative_step_cfg.answers[0] is true, and takes words. YAML reads yes, no",
        ),
        (put("analyses/clean", {"mode": "ablatoin"}), "analyses.clean.mode is 'ablatoin'; the modes are 'clean_no"),
        (put("analyses/clean", "ablatoin"), "analyses.clean.mode is 'ablatoin'; the modes are 'clean_no_sae'"),
        (put("analyses/clean/row_budgt", 3), "analyses.clean has no field 'row_budgt'. Did you mean 'row_budget'?"),
        (put("analyses/clean/save", {"prompt": 1}), "analyses.clean.save has no field 'prompt'. Did you mean"),
        (put("analyses/clean", [1]), "analyses.clean is [1]; it takes a mapping"),
        (put("analyses/..", {}), "The analysis '..' cannot be a folder's name; use letters, digits, - and _ only"),
        (put("analyses/a.b", {}), "The analysis 'a.b' cannot be a folder's name"),
        (put("analyses", {}), "There are no analyses"),
        (put("analyses", ["clean"]), "analyses is ['clean']; it takes a mapping"),
        (put("runner/limitt", 3), "runner has no field 'limitt'. Did you mean 'limit'?"),
        (put("runner/limit", "many"), "runner.limit"),
        (put("session/datamodule_cfg/eval_batch_size", "four"), "session.datamodule_cfg.eval_batch_size"),
        (put("session/adapter_ctx", ["cora"]), "UnknownAdapterError"),
        (put("session/adapter_ctx", {"core": 1}), "it takes a list of adapters' names"),
        (put("session/module_cls", "nowhere.Module"), "there is no module 'nowhere'"),
        (put("session/module_cls", "mine.Moddule"), "mine has no class Moddule. Did you mean mine.Module?"),
        (put("session/module_cls", "Module"), "give the path of a class, package.module.Class"),
        (put("session/module_cfg/auto_comp_cfg", {"module_cfg_mixin": "mine.Extr"}), "Did you mean mine.Extra?"),
        (put("session/module_cfg/auto_comp_cfg", {"module_cfg_mixin": "mine.Reversed"}), "is not a dataclass"),
        (
            put("session/module_cfg/auto_comp_cfg", {"module_cfg_mixin": "mine.Unwritable"}),
            "cannot be written in a file",
        ),
        (put("session/module_cfg/auto_comp_cfg", {"module_mixin": "mine.Extra"}), "Did you mean 'module_cfg_mixin'?"),
        (put("session/module_cfg/hf_model", "x"), "session.module_cfg.hf_model cannot be given in a file"),
        (put("session/datamodule_cfg/prompt_cfg", {"class_path": "mine.Prompt"}), "Did you mean mine.Prompts?"),
        (put("session/datamodule_cfg/prompt_cfg", {"class_path": "mine.Module"}), "prompt_cfg"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    write: Write,
    change: Callable[[dict[str, Any]], None],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("interpretune.session.session.ITSession.__init__", lambda *_: pytest.fail("a session was made"))
    assert main(["run", write(change)]) == EXIT_ERROR
    printed = capsys.readouterr()
    assert printed.out == ""
    assert told in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--limt", "3"], "Did you mean 'limit'?"),
        (["--limit"], "--limit needs a value"),
        (["--limit", "many"], "runner.limit"),
        (["--datamodule_cfg.eval_batch_sz", "3"], "Did you mean 'eval_batch_size'?"),
        (["--datamodule_cfg.prompt_cfg.question_sufix", "x"], "Did you mean 'question_suffix'?"),
        (["--analyses.clean.row_budgt", "3"], "Did you mean 'row_budget'?"),
        (["--analyses.clean.mode", "ablatoin"], "Did you mean 'ablation'?"),
        (["other.yaml"], "'other.yaml' is one too many"),
        (["-n", "3"], "'-n' is one too many"),
    ],
)
def test_wrong_options_are_a_wrong_command_line(
    write: Write, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in usage_error([write(), *options], capsys)


@pytest.mark.parametrize(
    ("text", "told"),
    [("session: [", "run.yaml is no YAML"), ("- a", "run.yaml has no mapping"), (None, "run.yaml cannot be read")],
)
def test_files_that_are_no_configuration_are_refused(
    here: Path, text: str | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (here / "run.yaml").write_text(text)
    assert main(["run", "run.yaml"]) == EXIT_ERROR
    assert told in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- running


class Forwards:
    """Counts forwards of the models of all sessions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from transformers import GPT2LMHeadModel

        self.count = 0
        inner = GPT2LMHeadModel.forward

        def forward(model: nn.Module, *args: Any, **values: Any) -> Any:
            self.count += 1
            return inner(model, *args, **values)

        forward.__signature__ = __import__("inspect").signature(inner)  # the columns of a batch follow it
        monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)

    def identity(self) -> None:
        """No result depends on the count."""

    def take(self) -> int:
        count, self.count = self.count, 0
        return count


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Forwards:
    return Forwards(monkeypatch)


def run_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["run", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_results_are_made_once_and_told(
    write: Write, here: Path, capsys: pytest.CaptureFixture[str], forwards: Forwards
) -> None:
    (here / "operations.py").write_text(CERTAINTY)
    more = {"mode": "clean_no_sae", "operations": ["operations.py"], "keep": ["certainty", "logit_diffs"]}
    file = write(analyses={"clean": {"save": {"prompts": True}}, "more": more}, runner={"root": "out"})
    told = run_json([file], capsys)
    assert forwards.take() > 0
    assert told["seconds"] > 0
    for row in told["analyses"]:
        store = AnalysisStore.open(here / row["folder"])
        assert store.complete
        assert Path(row["folder"]).name == f"{row['name']}-{row['key'][:12]}"
        assert (row["rows"], row["key"], row["tables"]) == (N_ROWS, store.manifest.key, [])
    assert [row["name"] for row in told["analyses"]] == ["clean", "more"]
    assert "prompts" in AnalysisStore.open(told["analyses"][0]["folder"]).fields
    assert set(AnalysisStore.open(told["analyses"][1]["folder"]).fields) == {"certainty", "logit_diffs"}

    again = run_json([file], capsys)
    assert forwards.take() == 0
    assert [row.pop("found") for row in (*told["analyses"], *again["analyses"])] == [False, False, True, True]
    assert again["analyses"] == told["analyses"]
    assert main(["run", file]) == 0
    printed = capsys.readouterr()
    assert f"more: found in {told['analyses'][1]['folder']}, not run again" in printed.err
    assert [line.split()[:2] for line in printed.out.splitlines()[2:]] == [
        ["clean", f"{N_ROWS}"],
        ["more", f"{N_ROWS}"],
    ]
    assert "stack: core" in printed.err


def test_questions_are_asked_beside_analyses(write: Write, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "He has", "answers": [" bread", " stone"], "correct": 1, "corrupted": "Ada has"},
        {"prompt": "Bo likes a boat and", "answers": [" bread", " stone"], "corrupted": "Bo likes a hat and"},
    ]
    write_rows(here / "question.jsonl", rows)

    def change(written: dict[str, Any]) -> None:
        written["session"]["datamodule_cfg"] = {"rows": "question.jsonl"}
        del written["session"]["module_cfg"]["generative_step_cfg"]

    heads = {"units": [{"heads": 1}, {"vector": "layers.1.mlp_out"}], "value": "corrupted", "positions": "each"}
    file = write(change, analyses={"clean": "clean_no_sae", "heads": heads, "lens": {"method": "lens"}})
    assert printed_config([file], capsys).count("value: corrupted") == 1
    options = ["--analyses.heads.positions", "answer", "--analyses.neurons.units", "{neurons: 1}"]
    assert main(["run", file, *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["analyses"]
    assert [(item["name"], item["rows"], item["complete"]) for item in told] == [
        ("clean", 2, True),
        ("heads", 2, True),
        ("lens", 2, True),
        ("neurons", 2, True),
    ]
    assert [item["units"] for item in told[2]["layers"]][:2] == ["layers.0.resid_pre", "layers.0.resid_post"]
    effects = Effects.open(told[1]["folder"])
    assert told[1]["top"] == effects.top().to_dict("records")
    assert effects.question["positions"] == "answer"
    assert AnalysisStore.open(told[0]["folder"]).manifest.about["answers"] == [" bread", " stone"]
    assert not any(item["found"] for item in told)
    options += ["--analyses.heads.evidence", "{top: 1, cards: 0}"]  # the effects are there, what follows is not
    assert main(["run", file, *options]) == 0
    printed, progress = capsys.readouterr()
    assert [name for name in ("clean", "heads", "lens") if f"{name}: found in" in progress] == ["clean", "lens"]
    assert "heads: Effects on logit_diff over 2 rows of 4 heads of layers.1.attn_z" in printed
    assert effects.top(1).name[0] in printed
    assert "layers.0.resid_pre" in printed
    rows = {"rows": [{"prompt": "He has"}, {"prompt": "Bo likes a boat and"}], "answers": []}
    loss = {"units": {"heads": 1}, "objective": "loss", "positions": "each"}

    def without(written: dict[str, Any]) -> None:
        change(written)
        written["session"]["datamodule_cfg"] = rows

    assert main(["run", write(without, analyses={"loss": loss}), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["analyses"][0]["top"][0]["mean_size"] > 0
    heads["mode"] = "ablation"
    assert main(["run", write(change, analyses={"heads": heads})]) == EXIT_ERROR
    assert "analyses.heads has no field 'mode'. " in capsys.readouterr().err


def test_stores_note_the_configuration_that_made_them(
    write: Write, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "hf_" + "a1" * 20

    def change(written: dict[str, Any]) -> None:
        written["session"]["shared_cfg"] = {
            "model_name_or_path": str(here / "model"),
            "tokenizer_kwargs": {"token": secret},
        }

    [row] = run_json([write(change), "--limit", "2", "--root", str(here / "out")], capsys)["analyses"]
    told = AnalysisStore.open(row["folder"]).manifest.about["made_by"]
    assert told["command"] == "interpretune run run.yaml"
    written = told["configuration"]
    assert written["runner"] == {"limit": 2, "root": "out"}
    assert written["session"]["shared_cfg"] == {"model_name_or_path": "model", "tokenizer_kwargs": {"token": HIDDEN}}
    manifest = (Path(row["folder"]) / "manifest.json").read_text()
    assert secret not in manifest
    assert str(here) not in manifest
    del written["session"]["shared_cfg"]["tokenizer_kwargs"]
    (here / "again.yaml").write_text(yaml.safe_dump(written))
    assert run_json(["again.yaml"], capsys)["analyses"][0]["key"] == row["key"]


def test_limit_takes_whole_batches_into_a_folder_of_its_own(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    file = write()
    limited, whole = (run_json([file, *options], capsys)["analyses"][0] for options in (["--limit", "2"], []))
    assert (limited["rows"], whole["rows"]) == (BATCH_SIZE, N_ROWS)
    assert limited["folder"] != whole["folder"]
    assert main(["run", file, "--limit", "0"]) == EXIT_ERROR
    assert "limit is 0; give a number of rows from 1" in capsys.readouterr().err


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    write: Write, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write()
    assert main(["run", file, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("clean\n=====\n")
    assert "plain_forward(" in shown
    assert f"{N_ROWS} rows in 3 batches, 3 to run" in shown
    told = run_json([file, "--dry-run"], capsys)
    (row,) = told["analyses"]
    assert (row["name"], row["rows"], row["batches"], row["remaining"]) == ("clean", N_ROWS, 3, 3)
    assert row["folder"].startswith("analyses/clean-")
    assert not (here / "analyses").exists()
    run_json([file], capsys)
    assert run_json([file, "--dry-run"], capsys)["analyses"][0]["remaining"] == 0


def test_what_a_session_lacks_is_explained(write: Write, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", write(analyses={"a": "ablation"})]) == EXIT_ERROR
    assert "The mode ablation needs latent models" in capsys.readouterr().err
    assert main(["run", write(analyses={"a": {"operations": ["certainty"]}})]) == EXIT_ERROR
    assert "There is no operation 'certainty'" in capsys.readouterr().err
    assert main(["run", write(analyses={"a": {"keep": ["logit_dif"]}})]) == EXIT_ERROR
    assert "Did you mean logit_diffs?" in capsys.readouterr().err
    (here / "elsewhere.py").write_text(CERTAINTY)
    elsewhere = f"file://{here}/elsewhere.py"
    assert main(["run", write(analyses={"a": {"operations": [elsewhere]}})]) == EXIT_ERROR
    told = capsys.readouterr().err
    assert "code from elsewhere" in told
    hash_ = told.split("'elsewhere.py': '")[1][:64]
    trusted = {"operations": [elsewhere], "trusted": {"elsewhere.py": hash_}, "keep": ["certainty"]}
    assert run_json([write(analyses={"a": trusted})], capsys)["analyses"][0]["rows"] == N_ROWS


@needs_saelens
def test_saes_from_disk_are_ablated(
    write: Write, here: Path, capsys: pytest.CaptureFixture[str], forwards: Forwards
) -> None:
    from tests.saelens.test_loading import PLACE, random_sae

    random_sae().save_model(here / "sae")
    names = {"names_filter": [f"{PLACE}.hook_sae_acts_post"]}
    analyses = {"clean": "clean_w_sae", "ablation": {"mode": "ablation", "row_budget": 8, **names}}

    def change(written: dict[str, Any]) -> None:
        written["session"]["adapter_ctx"] = ["sae_lens"]
        written["session"]["module_cfg"]["sae_cfgs"] = [{"path": "sae"}]

    file = write(change, analyses=analyses)
    told = run_json([file], capsys)
    effects = AnalysisStore.open(told["analyses"][1]["folder"])
    assert "effects" in effects.fields
    assert next(effects.latents()).num_rows > 0
    budget = run_json([file, "--analyses.ablation.row_budget", "4"], capsys)
    assert budget["analyses"] == [{**item, "found": True} for item in told["analyses"]]  # which changes no result


def test_an_interrupted_run_says_that_it_goes_on(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, inner, seen = write(), StoredRun.write, [0]

    def interrupt(*args: Any) -> None:
        seen[0] += 1
        if seen[0] == 2:
            raise KeyboardInterrupt
        inner(*args)

    with monkeypatch.context() as patched:
        patched.setattr(StoredRun, "write", interrupt)
        assert main(["run", file]) == EXIT_INTERRUPTED
    assert "the same command goes on where this run was stopped" in capsys.readouterr().err
    assert run_json([file, "--dry-run"], capsys)["analyses"][0]["remaining"] == 2
    assert run_json([file], capsys)["analyses"][0]["rows"] == N_ROWS


def test_the_command_finds_modules_of_the_current_directory(
    write: Write, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [item for item in sys.path if item not in ("", str(here))])
    assert run_json([write(put("session/module_cls", "mine.Module"))], capsys)["analyses"][0]["rows"] == N_ROWS


def test_the_example_of_the_docs_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    options = {
        "--shared_cfg.model_name_or_path": str(here / "model"),
        "--module_cfg.generative_step_cfg.answers": '["Yes", "No"]',
        "--module_cfg.device": "cpu",
        "--root": str(here / "out"),
    }
    arguments = [part for pair in options.items() for part in pair]
    assert run_json(["docs/examples/run.yaml", *arguments], capsys)["analyses"][0]["rows"] == 8


@needs_saelens
def test_the_file_of_the_docs_can_be_read(here: Path) -> None:
    block = (ROOT / "docs" / "run.md").read_text().split("```yaml\n")[1].split("```")[0]
    (here / "run.yaml").write_text(block)
    run = read_run(["run.yaml"])
    assert run.session.latents == it.LatentRequest(release="gpt2-small-hook-z-kk", layers=[9])
    assert run.analyses["ablation"].operations == ["operations.py", "certainty"]
    assert run.session.module_cfg.sae_cfgs == ()  # as by default: the request for latent models sets it
    assert run.session.datamodule_cfg.prompt_cfg.shout


def test_questions_of_the_docs_can_be_read(here: Path) -> None:
    rows, asked = (ROOT / "docs" / "run.md").read_text().split("```yaml\n")[2:4]
    (here / "run.yaml").write_text("".join(block.split("```")[0] for block in (rows, asked)))
    run = read_run(["run.yaml"])
    assert run.session.datamodule_cfg.rows == {"train": "agreement", "validation": "prompts.csv"}
    assert written_units(run.analyses["neurons"].units, []) == [it.Neurons(15)]
    other = read_run(["run.yaml", "--analyses.neurons.units.neurons", "3"])
    assert written_units(other.analyses["neurons"].units, []) == [it.Neurons(3)]
    assert run.analyses["neurons"].objective == {"logit_diff": {"against": "mean"}}
    assert len(written_units(run.analyses["more"].units[:2], [])) == 3
    assert run.analyses["neurons"].split == "train"
    assert run.analyses["neurons"].evidence == EvidenceCfg(held_out="validation")
    assert (run.analyses["on_units"].result, run.analyses["components"].exact) == (NodeEffects, 20)
    example = read_run([str(ROOT / "docs" / "examples" / "question.yaml")])
    assert example.analyses["heads"] == QuestionCfg(units={"heads": "all"}, objective="log_prob", value="corrupted")
