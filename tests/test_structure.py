"""The structure of the packages: no circle of modules, and public names that suffice for all who are not core."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
from pathlib import Path

import grimp
import networkx
import pytest

from interpretune.system.lazy_names import homes_of
from interpretune.system.offered import KINDS

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("interpretune", "interpretune_tlens", "interpretune_saelens", "interpretune_lightning"),
    *("interpretune_hello", "interpretune_nnsight", "interpretune_interp_engine", "interpretune_tensorboard"),
)
NAMES = Path(__file__).parent / "public_names.txt"
"""Names of the public packages: whoever changes one changes this file on purpose."""


@pytest.fixture(scope="module")
def imports() -> networkx.DiGraph:
    """Which module imports which when it is imported or runs; imports for types alone are left out."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    edges = ((name, other) for name in graph.modules for other in graph.find_modules_directly_imported_by(name))
    return networkx.DiGraph(edges)


def circles(graph: networkx.DiGraph) -> list[set[str]]:
    return [found for found in networkx.strongly_connected_components(graph) if len(found) > 1]


def test_no_circle_of_modules(imports):
    assert len(imports) > 250
    assert circles(imports) == []


def test_no_circle_of_folders(imports):
    def folder(module: str) -> str:
        return ".".join(module.split(".")[:2]) if module.startswith("interpretune.") else module.split(".")[0]

    edges = {(folder(name), folder(other)) for name, other in imports.edges}
    assert circles(networkx.DiGraph((a, b) for a, b in edges if a != b and "interpretune" not in (a, b))) == []


def test_a_circle_is_found():
    assert circles(networkx.DiGraph([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")])) == [{"a", "b", "c"}]


# --------------------------------------------------------------------------------------------------------- public names


def listed_packages() -> list[str]:
    """The public packages, as the page on compatibility lists them."""
    page = (ROOT / "docs" / "adapters" / "compatibility.md").read_text(encoding="utf-8")
    section = page.partition("## Public names")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)


PUBLIC = {package: frozenset(importlib.import_module(package).__all__) for package in listed_packages()}
CORE = ROOT / "interpretune-core" / "src" / "interpretune"
TEMPLATES = CORE / "new_adapter" / "templates"
OUTSIDE = [
    *(file for package in PACKAGES[1:4] for file in sorted(ROOT.glob(f"*/src/{package}/**/*.py"))),
    *sorted(ROOT.glob("examples/*/**/*.py")),
    *sorted(TEMPLATES.rglob("*.py")),
]
PAGES = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]
PAGES += [*sorted(ROOT.glob("examples/*/README.md")), TEMPLATES / "README.md"]
GROUPS = {"interpretune.adapters", "interpretune.operations", "interpretune.conformance", "interpretune.tasks"}
GROUPS |= {kind.group for kind in KINDS}
"""Groups of entry points, which are no packages."""


def test_public_names_are_as_listed():
    there = [f"{package}.{name}" for package, names in PUBLIC.items() for name in names]
    assert sorted(there) == NAMES.read_text(encoding="utf-8").split()


def source_of(module: str) -> Path:
    """The file of a module; of a package its stub, where it has one."""
    [source] = ROOT.glob(f"*/src/{module.partition('.')[0]}/__init__.py")
    path = source.parents[1].joinpath(*module.split("."))
    files = (path / "__init__.pyi", path / "__init__.py", path.with_suffix(".py"))
    return next(file for file in files if file.exists())


def home_of(package: str, name: str) -> str:
    """The module in which a public name is defined, through whatever imports it; the package, for its own modules."""
    module = homes_of(package, source_of(package)).get(name, package)
    return module if module == package or not is_ours(module) else home_of(module, name)


@functools.cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def has_docstring(source: str, name: str) -> bool:
    """Whether a function, class or constant has a docstring; that of a constant stands below it."""
    body = parsed(source).body
    for i, node in enumerate(body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return bool(ast.get_docstring(node))
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and name in names_set(node):
            after = body[i + 1]
            return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return False


def names_set(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_has_a_docstring(package):
    silent = []
    for name in PUBLIC[package]:
        module = home_of(package, name)
        if module == package:
            assert importlib.import_module(f"{package}.{name}").__doc__
        elif is_ours(module) and not has_docstring(source_of(module).read_text(encoding="utf-8"), name):
            silent.append(f"{module}.{name}")
    assert silent == []


@pytest.mark.parametrize("package", PUBLIC)
def test_no_public_name_is_hidden_by_a_module(package):
    modules, homes = {file.stem for file in source_of(package).parent.iterdir()}, homes_of(package, source_of(package))
    assert [name for name in modules & homes.keys() if homes[name] != package] == []


def test_importing_public_packages_loads_nothing():
    heavy = {"torch", "transformers", "lightning", "sae_lens", "transformer_lens"}
    code = f"import sys, {', '.join(PUBLIC)}; print({heavy} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def private_uses(source: str, own: str = "") -> list[str]:
    """What code uses of other packages that is not public: imports, and attributes of what it imports."""
    found, modules = [], {}
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.ImportFrom) and is_ours(str(node.module), own):
            public = PUBLIC.get(str(node.module), ())
            found += [f"{node.module}.{item.name}" for item in node.names if item.name not in public]
        elif isinstance(node, ast.Import):
            names = {item.asname or item.name: item.name for item in node.names if is_ours(item.name, own)}
            found += [name for name in names.values() if name not in PUBLIC]
            modules |= names
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
            name = f"{modules[ast.unparse(node.value)]}.{node.attr}"
            found += [] if is_public(name) else [name]
    return found


def is_ours(module: str, own: str = "") -> bool:
    return module.partition(".")[0] in {*PACKAGES[:4]} - {own}


def is_public(name: str) -> bool:
    """Whether a dotted name is a public package, a name in one, or a member of that."""
    package = next(found for found in sorted(PUBLIC, key=len, reverse=True) if f"{name}.".startswith(f"{found}."))
    member = name.removeprefix(package).lstrip(".").partition(".")[0]
    return not member or member in PUBLIC[package]


def private_names_in(files: list[Path]) -> set[str]:
    """Names with one underscore of what classes define, and of what is set on objects."""
    found = set()
    for node in (node for file in files for node in ast.walk(parsed(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.ClassDef):
            found |= {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            found |= {
                name for item in node.body if isinstance(item, (ast.Assign, ast.AnnAssign)) for name in names_set(item)
            }
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name for name in found if re.match("_[a-z]", name)}


@functools.cache
def private_names_of_core() -> set[str]:
    return private_names_in([file for file in CORE.rglob("*.py") if TEMPLATES not in file.parents])


def private_attributes(source: str, own: set[str]) -> list[str]:
    """Attributes with an underscore that core has and the code's own package has not."""
    attributes = [node.attr for node in ast.walk(parsed(source)) if isinstance(node, ast.Attribute)]
    return [name for name in attributes if name in private_names_of_core() - own]


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: "/".join(file.relative_to(ROOT).parts[-4:]))
def test_only_public_names_of_core_are_used_outside(file):
    source, package = file.read_text(encoding="utf-8"), file.parent
    while (package.parent / "__init__.py").is_file():
        package = package.parent
    assert private_uses(source, package.name) == []
    assert private_attributes(source, private_names_in(sorted(package.rglob("*.py")))) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda file: "/".join(file.relative_to(ROOT).parts))
def test_pages_show_only_public_names(page):
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:python|py)\b[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [name for block in blocks for name in private_uses(block)] == []
    if page.name == "tutorial-imports.md":  # of another layout on the left
        text = "\n".join(" | ".join(line.split(" | ")[2:]) for line in text.splitlines())
    told = re.findall(r"`(interpretune(?:_lightning|_saelens|_tlens)?\.\w[\w.]*)", text)
    assert [name for name in told if name not in GROUPS and not is_public(name)] == []


def test_the_linter_forbids_all_that_is_not_listed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition('"Adapters use public packages only"')[2]
    forbidden = set(re.findall(r'"(interpretune\.[\w.*]+)"', text.partition("[[tool")[0]))
    modules = {f"interpretune.{file.stem}" for file in CORE.iterdir() if not file.name.startswith(("_", "py.typed"))}
    assert forbidden == {*modules - PUBLIC.keys(), "interpretune.*.*"}


def test_what_is_not_public_is_found():
    source = """
import interpretune as it
import interpretune.session.module
from interpretune.models import position_ids, tokens
from interpretune.models.padding import position_ids
it.ITModule, it.analysis.AnalysisCfg, it.plugins
"""
    modules = ["interpretune.session.module", "interpretune.models.tokens"]
    assert private_uses(source) == [*modules, "interpretune.models.padding.position_ids", "interpretune.plugins"]
    assert private_attributes("module._it_state.backend, self._own, torch._C", {"_own"}) == ["_it_state"]
    assert not is_public("interpretune.models.padding.mask_of")
    assert is_public("interpretune.analysis.AnalysisCfg.mode")
    constants = 'A = 1\nB, C = 2, 3\n"""Both."""'
    assert [has_docstring(constants, name) for name in "ABC"] == [False, True, True]
