"""What packages say that they need is what they import, and what decides whether a change lands is one version."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(file.parent for file in ROOT.glob("*/pyproject.toml"))
EXAMPLES = sorted(file.parent for file in ROOT.glob("examples/*/pyproject.toml"))
TEMPLATES = ROOT / "interpretune-core" / "src" / "interpretune" / "new_adapter" / "templates"
BY_NAME = {"accelerate", "gguf", "scikit-learn", "finetuning-scheduler", "interpretune-tlens"}
"""What others import of the extras: transformers, evaluate, Lightning; and an adapter, which is stacked by its name."""
OURS = {next((folder / "src").glob("interpretune*")).name: folder.name for folder in (*PACKAGES, *EXAMPLES)}
installed = cache(importlib.metadata.packages_distributions)


def distributions_of(module: str) -> set[str]:
    """Distributions that bring a module, by normalized name; those of editable packages are not listed."""
    return {OURS[module]} if module in OURS else {normalized(name) for name in installed().get(module, ())}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text(encoding="utf-8"))


def declared(package: Path) -> dict[str, Requirement]:
    """Requirements of a distribution, its extras among them, by normalized name."""
    project = read(package / "pyproject.toml")["project"]
    extras = project.get("optional-dependencies", {})
    needed = [*project["dependencies"], *(item for extra in extras.values() for item in extra)]
    return {normalized(item.name): item for item in map(Requirement, needed)}


@cache
def imported(folder: Path) -> set[str]:
    """Top-level names of modules that code below a folder imports, for types too."""
    found = set()
    files = [file for file in folder.rglob("*.py") if TEMPLATES not in file.parents]
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            found |= {item.name.partition(".")[0] for item in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names - {folder.name}


def undeclared(package: Path) -> set[str]:
    """Modules that a package imports, of whose distributions it declares none."""
    [source] = (package / "src").glob("interpretune*")
    return {name for name in imported(source) if not distributions_of(name) & declared(package).keys()}


@pytest.mark.parametrize("package", [*PACKAGES, *EXAMPLES], ids=lambda folder: folder.name)
def test_what_is_imported_is_declared(package):
    assert undeclared(package) == set()


def test_an_undeclared_import_is_found(tmp_path):
    source = tmp_path / "src" / "interpretune_acme"
    source.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["PyYAML>=6"]\n')
    (source / "x.py").write_text("import json, yaml, interpretune_acme\ndef f():\n    from torch import nn\n")
    assert undeclared(tmp_path) == {"torch"}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda folder: folder.name)
def test_what_is_declared_is_imported(package):
    [source] = (package / "src").glob("interpretune*")
    provided = set().union(*map(distributions_of, imported(source)))
    assert declared(package).keys() - provided - BY_NAME == set()


def test_one_oldest_python_is_promised():
    root = read(ROOT / "pyproject.toml")["tool"]
    oldest = root["mypy"]["python_version"]
    assert root["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    for folder in (*PACKAGES, *EXAMPLES, TEMPLATES):
        promised = read(folder / "pyproject.toml")["project"]["requires-python"]
        assert promised.partition(",")[0] == f">={oldest}"  # libraries of examples may know a newest, too
    assert f"Python {oldest} or later" in (ROOT / "README.md").read_text(encoding="utf-8")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_versions_of_the_workspace_lie_in_what_is_promised():
    needed = [item for package in (*PACKAGES, *EXAMPLES) for item in declared(package).items()]
    outside = [str(item) for name, item in needed if name in pins() and not item.specifier.contains(pins()[name])]
    assert outside == []


def test_linters_are_pinned_and_those_before_a_commit_are_the_same():
    assert {"ruff", "mypy", "import-linter", "codespell", "pytest", "hypothesis"} <= pins().keys()
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    before = {re.sub("-pre-commit$", "", repo["repo"].rpartition("/")[2]): repo["rev"] for repo in repos}
    assert before == {name: f"v{pins()[name]}" for name in ("ruff", "codespell")}
