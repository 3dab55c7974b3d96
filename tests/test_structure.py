"""The structure of the packages: no circle of modules, no private names of core, public names as they are listed."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import grimp
import networkx
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("interpretune", "interpretune_tlens", "interpretune_saelens", "interpretune_lightning"),
    *("interpretune_hello", "interpretune_nnsight"),
)
NAMES = Path(__file__).parent / "public_names.txt"
"""Names of the public namespaces: whoever changes one changes this file on purpose."""


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


def sources_outside_core() -> list[Path]:
    folders = [*ROOT.glob("interpretune-*/src/interpretune_*"), *ROOT.glob("examples/*/src/*")]
    folders.append(ROOT / "interpretune-core" / "src" / "interpretune" / "new_adapter" / "templates")
    return [file for folder in folders for file in sorted(folder.rglob("*.py"))]


def private_names_of_core(source: str) -> list[str]:
    """Private names that are imported from core, and the private state of core's modules."""
    found = re.findall(r"\._it_state\b", source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and re.match(r"interpretune(\.|$)", node.module or ""):
            path = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            found += [name for name in path if name.startswith("_")]
    return found


@pytest.mark.parametrize("file", sources_outside_core(), ids=lambda file: "/".join(file.parts[-2:]))
def test_no_private_name_of_core_outside_of_it(file):
    assert private_names_of_core(file.read_text(encoding="utf-8")) == []


def test_private_names_are_found():
    assert private_names_of_core("from interpretune.plugins.stack import _order\nmodule._it_state.backend = 1") == [
        "._it_state",
        "_order",
    ]


def test_public_names_are_as_listed():
    listed = NAMES.read_text(encoding="utf-8").split()
    spaces = sorted({name.rpartition(".")[0] for name in listed})
    there = [f"{space}.{name}" for space in spaces for name in importlib.import_module(space).__all__]
    assert sorted(there) == listed
