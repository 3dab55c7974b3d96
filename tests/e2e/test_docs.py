"""The documentation is true: signatures are the real ones, code runs, and its output is what the page shows."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import re
import sys
import tomllib
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

import pytest
from attrs import frozen

from interpretune import CONTRACT_VERSION, errors, hookspecs
from interpretune.plugins.stack import HOOK_NAMES, build_context
from tests.e2e.tiny_gpt2_small import save_model, save_sae
from tests.e2e.tutorial import ROOT
from tests.tiny import nli_rows

DOCS = ROOT / "docs"
HOOKS_PAGE = DOCS / "adapters" / "hooks.md"
WRITING_PAGE = DOCS / "adapters" / "writing.md"
FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@frozen
class Block:
    """A fenced block: its page, line, info string and text."""

    page: Path
    line: int
    info: str
    body: str

    @property
    def id(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["info"], found["body"])
        for found in FENCE.finditer(text)
    ]


def runnable() -> list[tuple[Block, str | None]]:
    """Runnable blocks, each with the output that the next block shows, if it shows one."""
    pairs: list[tuple[Block, str | None]] = []
    for page in sorted(DOCS.rglob("*.md")):
        found = blocks(page)
        for block, following in zip_longest(found, found[1:]):
            if block.info == "python runnable":
                output = following.body if following and following.info == "text output" else None
                pairs.append((block, output))
    return pairs


RUNNABLE = runnable()


@pytest.fixture
def hello(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The adapter of the page on writing adapters, installed from the page's own blocks."""
    found = {block.info: block.body for block in blocks(WRITING_PAGE)}
    code, project = found["python adapter"], found["toml adapter"]
    about = tomllib.loads(project)["project"]
    [(group, entries)] = about["entry-points"].items()
    [(name, target)] = entries.items()
    site = tmp_path / "site"
    info = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    module = target.partition(":")[0]
    (site / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, module, raising=False)
    imported = importlib.import_module(module)
    monkeypatch.setitem(sys.modules, module, imported)
    return imported


@pytest.mark.usefixtures("hello")
@pytest.mark.parametrize(("block", "output"), RUNNABLE, ids=[block.id for block, _ in RUNNABLE])
def test_runnable_block(block: Block, output: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERPRETUNE_CACHE", str(tmp_path / "cache"))
    namespace = ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", namespace)
    printed = io.StringIO()
    code = "\n" * block.line + block.body  # tracebacks show the page's lines
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(block.page), "exec"), namespace.__dict__)
    if output is not None:
        assert printed.getvalue() == output


@pytest.mark.parametrize(
    "package", ["interpretune-core", "interpretune-tlens", "interpretune-saelens", "interpretune-lightning"]
)
def test_example_of_a_readme(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run it with a local model, a local SAE and local rows in place of what it would download."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERPRETUNE_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "gpt2", bos_is_pad=True)
    save_sae(tmp_path / "sae", layer=9)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, nli_rows(6))), encoding="utf-8")
    [block] = [block for block in blocks(ROOT / package / "README.md") if block.info == "python"]
    code = re.sub(r"SAELensFromPretrainedConfig\(.*?\)", 'SAELensFromDiskConfig("sae")', block.body)
    code = code.replace("SAELensFromPretrainedConfig", "SAELensFromDiskConfig")
    exec(compile(code, block.id, "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    expected = {
        "interpretune-core": "tensor(",
        "interpretune-tlens": "TransformerBridge",
        "interpretune-saelens": "Top ",
        "interpretune-lightning": "test_accuracy",
    }
    assert expected[package] in printed


def test_pages_have_runnable_blocks_with_output() -> None:
    pages = {block.page.name for block, output in RUNNABLE if output}
    assert pages == {
        "ablate.md",
        "circuits.md",
        "concepts.md",
        "cross-layer.md",
        "evidence.md",
        "export.md",
        "first-analysis.md",
        "lenses.md",
        "memory.md",
        "training.md",
        "writing.md",
        "operations.md",
        "questions.md",
        "tasks.md",
        "threads.md",
    }


def test_every_python_block_parses() -> None:
    for page in [*DOCS.rglob("*.md"), *ROOT.glob("interpretune-*/README.md")]:
        for block in blocks(page):
            if block.info.startswith("python"):
                compile(block.body, block.id, "exec")


def documented_hooks() -> dict[str, tuple[str, str, str]]:
    """Signature, first sentence and phase of each hook on the page, in its order."""
    hooks = {}
    text = HOOKS_PAGE.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        [function] = ast.parse(found["body"]).body
        assert isinstance(function, ast.FunctionDef)
        combination = re.sub(r"^Since \d+\.\d+\. ", "", text[found.end() :].strip()).partition(".")[0]
        phase = re.findall(r"^## (\w+)$", text[: found.start()], re.MULTILINE)[-1]
        hooks[function.name] = (ast.unparse(function), combination, phase)
    return hooks


DOCUMENTED = documented_hooks()


def test_page_lists_all_hooks_in_order() -> None:
    assert tuple(DOCUMENTED) == HOOK_NAMES


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_documented_signature_is_the_real_one(name: str) -> None:
    signature = str(inspect.signature(getattr(hookspecs, name))).replace("'", "")
    assert DOCUMENTED[name][0] == ast.unparse(ast.parse(f"def {name}{signature}: ..."))


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_documented_combination_is_the_real_one(name: str) -> None:
    specification = getattr(hookspecs, name)
    combination = DOCUMENTED[name][1]
    assert (combination == "First result") == specification.interpretune_spec["firstresult"]
    assert combination in " ".join(specification.__doc__.split())


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_documented_phase_is_the_one_in_the_specifications(name: str) -> None:
    source = inspect.getsource(hookspecs)
    headings = re.findall(r"^# -+ (\w+)$", source[: source.index(f"def {name}(")], re.MULTILINE)
    assert DOCUMENTED[name][2] == headings[-1]


def test_adapter_of_the_page_times_steps(hello: ModuleType) -> None:
    logged = {}

    class Module:
        def log(self, name: str, value: float) -> None:
            logged[name] = value

    hook = build_context(["hello"]).hook
    assert hook.it_run_step(module=Module(), step_name="test_step", step=lambda: "result") == "result"
    assert logged["test_step_seconds"] >= 0
    assert len([line for line in inspect.getsource(hello).splitlines() if line]) <= 15


def test_adapter_of_the_page_is_the_example() -> None:
    shown = {block.info: block.body for block in blocks(WRITING_PAGE)}
    folder = ROOT / "examples" / "interpretune-hello"
    assert shown["toml adapter"] == (folder / "pyproject.toml").read_text(encoding="utf-8")
    code = folder / "src" / "interpretune_hello" / "__init__.py"
    assert shown["python adapter"] == code.read_text(encoding="utf-8")


def test_compatibility_page_names_the_contract_of_this_core() -> None:
    text = (DOCS / "adapters" / "compatibility.md").read_text(encoding="utf-8")
    assert f"now **{CONTRACT_VERSION}**" in text
    assert f"| {CONTRACT_VERSION} |" in text


def test_errors_page_lists_every_error() -> None:
    listed = dict(
        re.findall(r"^\| `(\w+)` \| (.*?) \|", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    defined = {name: cls for name, cls in vars(errors).items() if inspect.isclass(cls)}
    assert listed.keys() == defined.keys()
    for name, builtins in listed.items():
        for builtin in re.findall(r"`(\w+)`", builtins):
            assert builtin in {base.__name__ for base in defined[name].__mro__}


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("interpretune-*/README.md")]
    for page in [*pages, *ROOT.glob("examples/*/README.md")]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^):]*))?\)", page.read_text(encoding="utf-8")):
            file = page.parent / target if target else page
            assert file.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(file), f"{page}: {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
