"""One test for each hook of the contract: a stranger's adapter answers it, and what it says is what happens.

The tests bear the hooks' names: ``test_every_hook_has_a_test`` proves that none is missing, and the fixture
``stranger`` that each of them was called, with the arguments of the contract.
"""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
import torch
import yaml
from rich.console import Console

import interpretune as it
from interpretune import hookspecs
from interpretune.analysis import (
    AnalysisCfg,
    AnalysisMode,
    HuggingFaceBackend,
    offered_operations,
    run_analysis,
)
from interpretune.cli.run import RunReport, run_analyses
from interpretune.cli.run_config import read_run
from interpretune.operations import find_operation, latent_analyses
from interpretune.plugins.stack import HOOK_NAMES, build_context
from tests.sessions import BATCH_SIZE, N_ROWS, make_session, write_rows
from tests.tiny import nli_rows, tiny_llama
from tests.tiny_latents import RandomDictionary

Stranger = Callable[..., Any]

HEADER = """
    calls = []

    def note(self, hook, **arguments):
        self.calls.append((hook, arguments))
"""


@pytest.fixture
def stranger(request: pytest.FixtureRequest, adapter_of: Callable[..., None]) -> Iterator[Stranger]:
    """Install the adapter ``stranger`` that answers the hook of the test's name with an expression."""
    hook = request.node.name.partition("[")[0].removeprefix("test_")
    arguments = list(inspect.signature(getattr(hookspecs, hook)).parameters)
    loaded: list[Any] = []

    def install(answer: str = "None", *, wrapper: bool = False, level: str = "extension") -> Any:
        noted = ", ".join(f"{name}={name}" for name in arguments)
        body = HEADER + f"\n    @it.hookimpl({'wrapper=True' if wrapper else ''})"
        body += f"\n    def {hook}({', '.join(['self', *arguments])}):"
        body += f"\n        self.note({hook!r}, {noted})"
        body += f"\n        return {answer}\n"
        adapter_of("stranger", body=body, level=level)
        plugin = build_context(("stranger",)).adapters[-1].plugin
        plugin.calls.clear()
        loaded.append(plugin)
        return plugin

    yield install
    (plugin,) = loaded
    assert {name for name, _ in plugin.calls} == {hook}, f"{hook} was not called"
    assert all(set(given) == set(arguments) for _, given in plugin.calls)


def test_every_hook_has_a_test() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_it_")}
    assert tests == set(HOOK_NAMES)
    assert all("stranger" in inspect.signature(globals()[f"test_{name}"]).parameters for name in HOOK_NAMES)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in which tests put what the stranger's expressions give."""
    module = ModuleType("stranger_answers")
    monkeypatch.setitem(sys.modules, "stranger_answers", module)
    return module


GIVEN = "__import__('stranger_answers').given"


def test_it_contribute_classes(stranger: Stranger, answers: ModuleType, tmp_path: Path) -> None:
    class Extra:
        def greeting(self) -> str:
            return self.it_cfg.words  # type: ignore[attr-defined]

    @dataclass(kw_only=True)
    class ExtraConfig(it.ITConfig):
        words: str = "none"

    answers.given = it.ClassContribution(adapter="stranger", module=(Extra,), module_cfg=(ExtraConfig,))
    plugin = stranger(GIVEN)
    session = make_session(tmp_path, adapters=("stranger",), words="good day", init=False)
    assert session.module.greeting() == "good day"
    assert len(plugin.calls) == 1


def test_it_load_model(stranger: Stranger, answers: ModuleType, tmp_path: Path) -> None:
    answers.given = tiny_llama(seed=5)
    plugin = stranger(GIVEN, level="model")
    session = make_session(tmp_path, "gpt2", adapters=("stranger",), init=False)
    assert session.module.model is answers.given
    assert len(plugin.calls) == 1


def test_it_load_latent_models(stranger: Stranger, answers: ModuleType, tmp_path: Path) -> None:
    answers.given = [RandomDictionary("layers.1.resid_post")]
    stranger(GIVEN, level="latents")
    own = RandomDictionary("layers.0.resid_post")
    session = make_session(tmp_path, adapters=("stranger",), latent_models=[own], init=False)
    assert list(session.module.latent_models) == [own, *answers.given]


def test_it_prepare_data(stranger: Stranger, answers: ModuleType, tmp_path: Path) -> None:
    order = []
    answers.given = lambda: order.append("prepare")
    plugin = stranger(f"{GIVEN}()")
    session = make_session(tmp_path, adapters=("stranger",), init=False)
    setup = session.datamodule.setup
    session.datamodule.setup = lambda **kwargs: (order.append("setup"), setup(**kwargs))
    it.it_init(**session)
    assert order == ["prepare", "setup"]
    assert plugin.calls[0][1] == {"datamodule": session.datamodule, "module": session.module}


def test_it_setup_datamodule(stranger: Stranger, answers: ModuleType, tmp_path: Path) -> None:
    seen = []
    answers.given = lambda datamodule: seen.append(len(datamodule.dataset["validation"]))
    stranger(f"{GIVEN}(datamodule)")
    make_session(tmp_path, adapters=("stranger",))
    assert seen == [N_ROWS]  # core's setup came first


def test_it_setup_module(stranger: Stranger, answers: ModuleType, tmp_path: Path) -> None:
    latent_model = RandomDictionary("layers.1.resid_post")
    answers.given = lambda module: setattr(module, "latent_models", [latent_model])
    stranger(f"{GIVEN}(module)")
    session = make_session(tmp_path, adapters=("stranger",))
    assert list(session.module.latent_models) == [latent_model]


def test_it_configure_optimizers(stranger: Stranger, answers: ModuleType, tmp_path: Path) -> None:
    def build(module: it.ITModule) -> it.OptimizerSetup:
        weight = next(module.model.parameters()).requires_grad_()
        return it.OptimizerSetup(optimizers=(torch.optim.SGD([weight], lr=0.5),))

    answers.given = build
    stranger(f"{GIVEN}(module)")
    session = make_session(tmp_path, adapters=("stranger",))
    (optimizer,) = session.module.optimizers_and_schedulers.optimizers
    assert optimizer.defaults["lr"] == 0.5


def test_it_name_parameters(stranger: Stranger, tmp_path: Path) -> None:
    stranger("{'W_E': ['model.transformer.wte.weight']}")
    module = make_session(tmp_path, adapters=("stranger",)).module
    (named,) = module.hook.it_name_parameters(module=module)  # as adapters of frameworks do
    assert set(named["W_E"]) <= {name for name, _ in module.named_parameters()}


def test_it_move_batch(stranger: Stranger, tmp_path: Path) -> None:
    stranger("{**batch, 'moved': True}")
    module = make_session(tmp_path, adapters=("stranger",)).module
    assert module.batch_to_device({"input_ids": torch.zeros(1, 1)})["moved"] is True


def test_it_forward(stranger: Stranger, tmp_path: Path) -> None:
    stranger("batch['input_ids'] * 2")
    module = make_session(tmp_path, adapters=("stranger",)).module
    assert module(input_ids=torch.tensor([[3]])).tolist() == [[6]]


def test_it_generate(stranger: Stranger, tmp_path: Path) -> None:
    plugin = stranger("generation_kwargs['max_new_tokens']")
    module = make_session(tmp_path, adapters=("stranger",)).module
    tokens = torch.tensor([[3]])
    assert module.it_generate({"input_ids": tokens, "attention_mask": tokens}, max_new_tokens=7) == 7
    assert set(plugin.calls[0][1]["batch"]) == {"input_ids", "attention_mask"}


def test_it_run_step(stranger: Stranger, tmp_path: Path) -> None:
    class WithStep(it.ITModule):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            assert "input_ids" in batch

    plugin = stranger("(yield)", wrapper=True)
    session = make_session(tmp_path, adapters=("stranger",), module_cls=WithStep)
    it.test(**session)
    steps = [given["step_name"] for _, given in plugin.calls]
    assert steps == ["test_step"] * -(-N_ROWS // BATCH_SIZE)


def test_it_log(stranger: Stranger, tmp_path: Path) -> None:
    plugin = stranger()
    module = make_session(tmp_path, adapters=("stranger",)).module
    module.log("loss", torch.tensor(2.0, requires_grad=True) * 2, batch_size=3)
    ((_, given),) = plugin.calls
    assert not given["metrics"]["loss"].requires_grad
    assert (float(given["metrics"]["loss"]), given["options"]) == (4.0, {"batch_size": 3})
    assert float(module.logged_metrics["loss"]) == 4.0  # core was called too


@pytest.mark.parametrize("loop", ["fit", "validate", "test", "predict"])
def test_it_run_loop(stranger: Stranger, tmp_path: Path, loop: str) -> None:
    plugin = stranger("loop, loop_cfg")
    session = make_session(tmp_path, adapters=("stranger",))
    cfg = it.LoopConfig(max_epochs=7)
    assert getattr(it, loop)(**session, loop_cfg=cfg) == (loop, cfg)
    assert len(plugin.calls) == 1


def test_it_create_backend(stranger: Stranger, answers: ModuleType, tmp_path: Path) -> None:
    class Backend(HuggingFaceBackend):
        pass

    answers.given = Backend
    plugin = stranger(f"{GIVEN}(module.model, module.datamodule.tokenizer)")
    module = make_session(tmp_path, adapters=("stranger",)).module
    assert type(module.backend) is Backend
    assert module.backend is module.backend
    before = len(plugin.calls)
    module.latent_models = [RandomDictionary("layers.1.resid_post")]
    assert type(module.backend) is Backend
    assert len(plugin.calls) == before + 1  # latent models changed


def test_it_contribute_operations(stranger: Stranger, answers: ModuleType, tmp_path: Path) -> None:
    known = next(item for item in vars(latent_analyses).values() if type(item).__name__ == "Operation")
    answers.given = [attrs.evolve(known, name="strange")]
    stranger(GIVEN)
    module = make_session(tmp_path, adapters=("stranger",)).module
    assert find_operation("strange", offered_operations(module)) is answers.given[0]


def test_it_open_analysis(stranger: Stranger, tmp_path: Path) -> None:
    plugin = stranger()
    session = make_session(tmp_path, adapters=("stranger",))
    cfg = AnalysisCfg(mode=AnalysisMode.clean_no_sae)
    run_analysis(**session, analysis_cfg=cfg)
    ((_, given),) = plugin.calls
    assert given["module"] is session.module
    analysis = given["analysis"]
    assert (analysis.name, analysis.cfg, analysis.batch_idx, analysis.store) == ("clean_no_sae", cfg, None, None)
    assert "logit_diffs" in analysis.plan.keeps


def test_it_run_analysis(stranger: Stranger, tmp_path: Path) -> None:
    plugin = stranger("{**(yield), 'preds': analysis.inputs.tokens[:, 0] * 0 + 5}", wrapper=True)
    session = make_session(tmp_path, adapters=("stranger",))
    cache = run_analysis(**session, analysis_cfg=AnalysisCfg(mode=AnalysisMode.clean_no_sae))
    analyses = [given["analysis"] for _, given in plugin.calls]
    assert [len(item.inputs) for item in analyses] == [3, 3, 1]
    assert [item.batch_idx for item in analyses] == [0, 1, 2]
    assert torch.cat(cache.preds).tolist() == [5] * N_ROWS


def test_it_close_analysis(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = stranger()
    session = make_session(tmp_path, adapters=("stranger",))
    cfg = AnalysisCfg(mode=AnalysisMode.clean_no_sae)
    run_analysis(**session, analysis_cfg=cfg)
    ((_, given),) = plugin.calls
    assert given["analysis"].store.n_examples == N_ROWS
    assert given["analysis"].error is None

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(type(session.module.backend), "run", fail)
    with pytest.raises(RuntimeError, match="in the middle") as failed:
        run_analysis(**session, analysis_cfg=cfg)
    assert len(plugin.calls) == 2
    assert plugin.calls[1][1]["analysis"].error is failed.value


@pytest.fixture
def ran(tmp_path: Path, llama_folder: Path) -> Callable[..., RunReport]:
    """Run the four modes from a file that requests latent models, on a tiny model."""

    def ran(*adapters: str) -> RunReport:
        session = {
            "adapter_ctx": list(adapters),
            "shared_cfg": {"model_name_or_path": str(llama_folder), "cache_dir": str(tmp_path / "cache")},
            "datamodule_cfg": {
                "data": {"validation": str(write_rows(tmp_path / "rows.jsonl", nli_rows(4)))},
                "text_fields": ["premise", "hypothesis"],
                "num_labels": 2,
            },
            "module_cfg": {"generative_step_cfg": {"answers": ["Yes", "No"]}},
            "latents": {"layers": [1]},
        }
        written = {
            "session": session,
            "analyses": {str(mode): str(mode) for mode in AnalysisMode},
            "runner": {"root": str(tmp_path / "out")},
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
        return run_analyses(read_run([str(tmp_path / "run.yaml")]), Console(file=io.StringIO()))

    return ran


def test_it_configure_latents(stranger: Stranger, answers: ModuleType, ran: Callable[..., RunReport]) -> None:
    answers.given = lambda request: {"latent_models": [RandomDictionary(request.hook_points[0])]}
    plugin = stranger(f"{GIVEN}(request)", level="latents")
    report = ran("stranger")
    ((_, given),) = plugin.calls
    assert given["request"].layers == (1,)
    assert all(row["complete"] for row in report.analyses)


def test_it_report_session(
    stranger: Stranger, answers: ModuleType, adapter_of: Callable[..., None], ran: Callable[..., RunReport]
) -> None:
    answers.given = {"latent_models": [RandomDictionary("layers.1.resid_post")]}
    adapter_of("source", level="latents", body=f"@it.hookimpl\ndef it_configure_latents(self):\n    return {GIVEN}")
    noted = "calls = []\n" + "".join(
        f"@it.hookimpl\ndef it_{verb}_analysis(self, analysis):\n    self.calls.append(({verb!r}, analysis.name))\n"
        for verb in ("open", "run", "close")
    )
    adapter_of("listener", body=noted)
    plugin = stranger("[it.ReportSection(adapter='stranger', title='How it went', rows=[{'loss': 17.5}])]")
    listener = build_context(("listener",)).adapters[-1].plugin
    printed = ran("source", "stranger", "listener").text
    assert len(plugin.calls) == 1
    assert set(listener.calls) == {(verb, str(mode)) for verb in ("open", "run", "close") for mode in AnalysisMode}
    assert "How it went" in printed
    assert "17.5" in printed


def test_it_end_session(stranger: Stranger, tmp_path: Path) -> None:
    plugin = stranger()
    session = make_session(tmp_path, adapters=("stranger",))
    assert plugin.calls == []
    it.it_session_end(**session)
    assert plugin.calls == [("it_end_session", {"module": session.module, "datamodule": session.datamodule})]
