"""The fifteen-line adapter, installed as a stranger's package would be, and a package that nobody has seen before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from textwrap import dedent

import pytest

from tests.fresh_environment import CORE, ROOT, FreshEnvironment
from tests.tiny import nli_rows, save_tiny_model

HELLO = ROOT / "examples" / "interpretune-hello"

SESSION = """
    import sys
    import interpretune as it

    folder, *stacks = sys.argv[1:]

    class Module(it.ITModule):
        def test_step(self, batch, batch_idx):
            labels = batch.pop("labels")
            self.log("logits", float(self(**batch).logits.shape[-1]))

    for adapter in stacks:
        session = it.ITSession(
            it.ITSessionConfig(
                adapter_ctx=(adapter,),
                shared_cfg=it.ITSharedConfig(model_name_or_path=f"{folder}/model"),
                module_cls=Module,
                datamodule_cfg=it.ITDataModuleConfig(
                    data=f"{folder}/rows.jsonl", text_fields=("premise", "hypothesis"), num_labels=2
                ),
                module_cfg=it.ITConfig(
                    generative_step_cfg=it.GenerativeClassificationConfig(answers=("Yes", "No")), device="cpu"
                ),
            )
        )
        it.test(**session, loop_cfg=it.LoopConfig(progress=False))
        print(session.context.names, dict(session.module.logged_metrics), getattr(session.module, "greeting", None))
        it.it_session_end(**session)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    environment = FreshEnvironment.create(tmp_path_factory.mktemp("hello") / "environment")
    environment.install(CORE, HELLO)
    return environment


@pytest.fixture(scope="module")
def session_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, and a program that runs a session with each of the adapters that it is given."""
    folder = tmp_path_factory.mktemp("session")
    save_tiny_model(folder / "model", "gpt2")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, nli_rows(4))), encoding="utf-8")
    (folder / "session.py").write_text(dedent(SESSION), encoding="utf-8")
    return folder


def run_session(environment: FreshEnvironment, files: Path, *adapters: str) -> str:
    return environment.run("python", "-W", "error", files / "session.py", files, *adapters, cwd=files)


def test_hello_is_installed_and_listed(environment: FreshEnvironment) -> None:
    about = environment.adapters()["hello"]
    assert (about["state"], about["distribution"], about["level"]) == ("ready", "interpretune-hello", "extension")
    where = environment.python("import interpretune_hello, interpretune; print(interpretune_hello, interpretune)")
    assert where.count(str(environment.folder)) == 2  # not the folders of the workspace


def test_hello_is_checked_where_it_is_installed(environment: FreshEnvironment, tmp_path: Path) -> None:
    """By one rule in both ways: all of them run in the example's own tests."""
    copy = shutil.copytree(HELLO, tmp_path / "hello")  # where no configuration of the workspace reaches it
    both = """
        import pytest
        from interpretune.cli.main import main

        assert pytest.main(["-q", "-k", "session_runs", "tests"]) == 0
        assert main(["doctor", "hello", "--rule", "session-runs"]) == 0
    """
    assert environment.python(dedent(both), cwd=copy).count("1 passed") == 2


def test_an_adapter_made_on_the_fly_needs_nothing_of_core(
    environment: FreshEnvironment, session_files: Path, tmp_path: Path
) -> None:
    """A package that exists nowhere else contributes a class, stacks above another, and runs; so does the other."""
    before = sorted((path, path.read_bytes()) for path in installed_files(environment))
    project = """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"

        [project]
        name = "acme-greeter"
        version = "7.8.9"

        [project.entry-points."interpretune.adapters"]
        greeter = "acme.greeter:adapter"

        [tool.hatch.build.targets.wheel]
        packages = ["acme"]
    """
    code = """
        from interpretune import AdapterDeclaration, ClassContribution, hookimpl

        class Greeting:
            greeting = "good morning"

        class Greeter:
            declaration = AdapterDeclaration(name="greeter", level="extension", requires=("hello",), contract="1.0")

            @hookimpl
            def it_contribute_classes(self):
                return ClassContribution(adapter="greeter", module=(Greeting,))

        adapter = Greeter()
    """
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "greeter.py").write_text(dedent(code), encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(dedent(project), encoding="utf-8")
    environment.install(tmp_path)
    assert environment.adapters()["greeter"]["version"] == "7.8.9"
    alone, above = run_session(environment, session_files, "hello", "greeter").splitlines()
    assert alone.startswith("('core', 'hello') {")
    assert "'test_step_seconds': " in alone
    assert above.startswith("('core', 'hello', 'greeter') {")
    assert above.endswith("good morning")
    assert sorted((path, path.read_bytes()) for path in installed_files(environment)) == before


def installed_files(environment: FreshEnvironment) -> list[Path]:
    """Source files of core, where the environment has them."""
    core = environment.python("import interpretune; print(interpretune.__path__[0])").strip()
    assert core.startswith(str(environment.folder))
    return sorted(Path(core).rglob("*.py"))
