"""Reads the tutorial's code cells and makes the few changes in them that the documentation lists.

The tutorial lies beside the repository, not in it; tests that need it are skipped where it is absent.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMPORTS_PAGE = ROOT / "docs" / "tutorial-imports.md"
OLD_PACKAGES = ("interpretune", "it_examples")
NO_HOME = "none"

Name = tuple[str, str]
"""A module and an attribute of it."""


def tutorial_text() -> str | None:
    """The tutorial, or None where it is not at hand."""
    found = sorted((ROOT.parent / "shared" / "tutorial").glob("*.txt"))
    return found[0].read_text(encoding="utf-8") if found else None


def code_cells(text: str) -> list[str]:
    """The code after each cell marker, up to the next heading or marker."""
    cells: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if re.match(r"In \[.*\]:\s*$", line):
            cells.append([])
            inside = True
        elif re.match(r"#{2,6} \S", line):  # a heading; comments in the cells have one `#`
            inside = False
        elif inside:
            cells[-1].append(line)
    return ["\n".join(lines).strip() + "\n" for lines in cells]


def old_imports(cells: list[str]) -> set[Name]:
    """Every name that the cells import from the packages that have moved."""
    return {
        (node.module or "", alias.name)
        for cell in cells
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.ImportFrom) and is_old(node.module)
        for alias in node.names
    } | {
        (alias.name, "")
        for cell in cells
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.Import)
        for alias in node.names
        if is_old(alias.name)
    }


def is_old(module: str | None) -> bool:
    """Whether a module belongs to a package that has moved."""
    return (module or "").partition(".")[0] in OLD_PACKAGES


def read_imports_page() -> dict[Name, Name | None]:
    """New home of each old name; None where it has none any more."""
    homes: dict[Name, Name | None] = {}
    for line in IMPORTS_PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 4 or not cells[0].startswith("`"):
            continue
        old_module, old_name, new_module, new_name = (cell.strip("`") for cell in cells)
        assert (old_module, old_name) not in homes, f"{old_module}.{old_name} is listed twice"
        homes[old_module, old_name] = None if new_module == NO_HOME else (new_module, new_name)
    return homes


class Rewriter(ast.NodeTransformer):
    """Makes the documented changes and notes in ``made`` which it found a place for.

    Args:
        homes: New homes of imports.
        model_folder: Replaces the model's id.
        pad_token_id: Padding token of the local tokenizer.
    """

    def __init__(self, homes: Mapping[Name, Name | None], model_folder: Path, pad_token_id: int) -> None:
        self.homes = homes
        self.model_folder = model_folder
        self.pad_token_id = pad_token_id
        self.made: list[str] = []

    def visit_ImportFrom(self, node: ast.ImportFrom) -> list[ast.stmt]:
        """Import from the new homes."""
        if not is_old(node.module):
            return [node]
        self.made.append("imports")
        return [*self._moved(node)]

    def _moved(self, node: ast.ImportFrom) -> Iterator[ast.stmt]:
        for alias in node.names:
            home = self.homes[node.module or "", alias.name]
            if home is not None:
                module, name = home
                renamed = alias.asname or (alias.name if alias.name != name else None)
                yield ast.ImportFrom(module=module, names=[ast.alias(name, renamed)], level=0)

    def visit_Call(self, node: ast.Call) -> ast.Call:
        """Replace the calls that their libraries have dropped, and those that need a network."""
        self.generic_visit(node)
        match node.func:
            case ast.Attribute(attr="load_dataset"):
                self.made.append("load_dataset")
                return ast.Call(ast.Name("local_data", ast.Load()), [], [])
            case ast.Attribute(value=tokenizer, attr="batch_encode_plus"):
                self.made.append("batch_encode_plus")
                return ast.Call(tokenizer, node.args, node.keywords)
            case ast.Attribute(value=ast.Name("evaluate"), attr="load"):
                self.made.append("evaluate.load")
                return ast.Call(ast.Name("load_metric", ast.Load()), node.args, node.keywords)
            case ast.Name("SAELensFromPretrainedConfig"):
                self.made.append("sae")
                sae_id = [item for item in node.keywords if item.arg == "sae_id"]
                return ast.Call(ast.Name("local_sae", ast.Load()), [], sae_id)
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        """Replace the model's id by a folder."""
        self.generic_visit(node)
        if node.arg == "model_name_or_path":
            self.made.append("model")
            node.value = ast.Constant(str(self.model_folder))
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.Dict:
        """Replace the id of the padding token by that of the local tokenizer."""
        self.generic_visit(node)
        for place, key in enumerate(node.keys):
            if isinstance(key, ast.Constant) and key.value == "pad_token_id":
                self.made.append("pad_token_id")
                node.values[place] = ast.Constant(self.pad_token_id)
        return node

    def rewrite(self, cell: str) -> ast.Module:
        """The changed code of one cell, ready to compile."""
        tree: ast.Module = ast.fix_missing_locations(self.visit(ast.parse(cell)))
        return tree
