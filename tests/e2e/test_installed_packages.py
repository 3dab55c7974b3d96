"""Packages where nothing else of interpretune is: starters of adapters, the fifteen-line one, and a stranger's."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from interpretune.new_adapter import writing
from interpretune.new_adapter.writing import ADAPTER_KINDS, TEMPLATES
from interpretune.testing.rules import RULES
from tests.fresh_environment import CORE, ROOT, FreshEnvironment, Programs
from tests.tiny import nli_rows, save_tiny_model

KIND_NAMES = [str(kind) for kind in ADAPTER_KINDS]
HELLO = ROOT / "examples" / "interpretune-hello"


def adapter_name(kind: str) -> str:
    return f"acme_{kind}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    environment = FreshEnvironment.create(tmp_path_factory.mktemp("fresh") / "environment")
    environment.install(CORE, HELLO)
    return environment


@pytest.fixture(scope="module")
def packages(environment: FreshEnvironment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One package of each kind, written and installed there."""
    folder = tmp_path_factory.mktemp("written")
    for kind in KIND_NAMES:
        environment.run("interpretune", "new-adapter", adapter_name(kind), "--kind", kind, cwd=folder)
    written = {kind: folder / f"interpretune-acme{kind}" for kind in KIND_NAMES}
    environment.install(*written.values())
    return written


@pytest.fixture(scope="module")
def programs(environment: FreshEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """Programs there, which do not each import the libraries."""
    with environment.programs(tmp_path_factory.mktemp("programs")) as programs:
        yield programs


# ------------------------------------------------------------------------------------------------------------ starters


def test_what_was_written_is_discovered(environment: FreshEnvironment, packages: dict[str, Path]) -> None:
    listed = environment.adapters()
    for kind in packages:
        about = listed[adapter_name(kind)]
        assert (about["state"], about["level"]) == ("ready", kind)
        assert (about["distribution"], about["version"]) == (f"interpretune-acme{kind}", "0.1.0")


def test_what_was_written_stacks_all_together(programs: Programs, packages: dict[str, Path]) -> None:
    names = [adapter_name(kind) for kind in packages]
    explained = json.loads(programs.command("explain", "--json", *reversed(names)))
    assert [item["name"] for item in explained["stack"]] == ["core", *names]
    assert explained["hooks"]["it_load_model"] == ["acme_model", "core"]
    assert explained["hooks"]["it_run_loop"] == ["acme_framework", "core"]
    assert "acme_latents" in explained["hooks"]["it_load_latent_models"]
    assert "acme_extension (wrapper)" in explained["hooks"]["it_run_step"]


CHECKED = {
    "framework": ("loops", "session_end"),
    "model": ("activations", "generation", "padding", "step"),
    "latents": ("latents",),
    "extension": ("contributions", "sessions"),
}
"""Files of rules about what the starter of a kind has code for, beside the rules of form; ``make kit`` checks all."""

SLOW = (
    *("nested-edits-add-up", "loop-lets-batches-go", "errors-arrive", "released-after-a-failure"),
    "stacks-in-every-order",  # all starters stack in the test above
)


def suite_ids(kind: str, folder: Path) -> list[str]:
    """Ids of the tests that the starter brings, and of those of its rules."""
    file = folder / "tests" / "test_conformance.py"
    text = file.read_text(encoding="utf-8")
    [suite] = re.findall(r"^class (\w+)\(", text, re.MULTILINE)
    own = re.findall(r"^( *)def (test_\w+)", text, re.MULTILINE)
    files = ("declaration", "stacking", *CHECKED[kind])
    rules = [item for item in RULES.values() if item.function.__module__.rpartition(".")[2] in files]
    names = [f"{suite}::{name}" if indented else name for indented, name in own]
    names += [f"{suite}::{item.test_name}" for item in rules if item.id not in SLOW]
    return [f"{file}::{name}" for name in names]


def test_what_was_written_passes_the_kit(programs: Programs, packages: dict[str, Path]) -> None:
    """All in one process, with the settings of one: the template of settings is one."""
    settings = {
        (folder / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.pytest")[2]
        for folder in packages.values()
    }
    assert len({item.partition("[tool.ruff")[0] for item in settings}) == 1
    asked = [test for kind, folder in packages.items() for test in suite_ids(kind, folder)]
    first = packages[KIND_NAMES[0]]
    report = programs.pytest("-q", "-c", first / "pyproject.toml", *asked, cwd=first.parent)
    counted = {what: int(n) for n, what in re.findall(r"(\d+) (\w+)", report.splitlines()[-1])}
    assert counted["passed"] + counted.get("skipped", 0) == len(asked), report
    assert counted["passed"] > 0.7 * len(asked), report


def test_the_wheel_of_core_has_the_templates(environment: FreshEnvironment, tmp_path: Path) -> None:
    flags = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path)
    environment.run("python", "-m", "pip", "wheel", *flags, CORE)
    [wheel] = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if "/new_adapter/templates/" in name}
    here = {f"interpretune/new_adapter/templates/{path.relative_to(TEMPLATES)}" for path in writing._files(TEMPLATES)}
    assert packed == here
    assert len(here) > 20


# --------------------------------------------------------------------------------------------- hello, and a stranger

SESSION = """
    import sys, warnings
    import interpretune as it

    warnings.simplefilter("error")

    folder, *stacks = sys.argv

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
def session_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    folder = tmp_path_factory.mktemp("session")
    save_tiny_model(folder / "model", "gpt2")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, nli_rows(4))), encoding="utf-8")
    return folder


def test_hello_is_installed_and_listed(environment: FreshEnvironment) -> None:
    about = environment.adapters()["hello"]
    assert (about["state"], about["distribution"], about["level"]) == ("ready", "interpretune-hello", "extension")
    names = ("interpretune_hello", "interpretune")
    where = environment.python(f"from importlib.util import find_spec; print(*(find_spec(x).origin for x in {names}))")
    assert where.count(str(environment.folder)) == 2  # not the folders of the workspace


def test_hello_is_checked_where_it_is_installed(programs: Programs, tmp_path: Path) -> None:
    """By one rule in both ways: all of them run in the example's own tests."""
    copy = shutil.copytree(HELLO, tmp_path / "hello")  # where no configuration of the workspace reaches it
    assert "1 passed" in programs.pytest("-q", "-k", "session_runs", "tests", cwd=copy)
    assert "1 passed" in programs.command("doctor", "hello", "--rule", "session-runs")


def test_an_adapter_made_on_the_fly_needs_nothing_of_core(
    environment: FreshEnvironment, programs: Programs, session_files: Path, tmp_path: Path
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
    alone, above = programs.run(dedent(SESSION), session_files, "hello", "greeter").splitlines()
    assert alone.startswith("('core', 'hello') {")
    assert "'test_step_seconds': " in alone
    assert above.startswith("('core', 'hello', 'greeter') {")
    assert above.endswith("good morning")
    assert sorted((path, path.read_bytes()) for path in installed_files(environment)) == before


def installed_files(environment: FreshEnvironment) -> list[Path]:
    """Source files of core, where the environment has them."""
    (core,) = environment.folder.glob("lib/python*/site-packages/interpretune")
    return sorted(core.rglob("*.py"))
