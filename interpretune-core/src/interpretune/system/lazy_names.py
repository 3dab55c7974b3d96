"""Names of a namespace that are loaded when they are used, wherever in the package they are defined."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach_stub(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a namespace, read from the stub beside it.

    As ``lazy_loader.attach_stub``, which takes names only from modules below the namespace. No name may be that of a
    module of the package, whose import would put the module in its place.

    Args:
        package: ``__name__`` of the namespace.
        file: ``__file__`` of it; its stub says ``from interpretune.<module> import <names>``, and ``from . import`` of
            modules of the package.
    """
    homes = homes_of(package, Path(file).with_suffix(".pyi"))
    names = sorted(homes)

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        of_package = home == package
        value: Any = importlib.import_module(f"{home}.{name}" if of_package else home)
        value = value if of_package else getattr(value, name)
        setattr(sys.modules[package], name, value)  # found without this function from now on
        return value

    return load, names.copy, names


def homes_of(package: str, stub: Path) -> dict[str, str]:
    """The names that a package's stub imports, with the modules in which they are."""
    imports = [node for node in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    return {alias.name: _module_of(node, package) for node in imports for alias in node.names}


def _module_of(node: ast.ImportFrom, package: str) -> str:
    """The module of an import; relative ones have a dot for the package."""
    return ".".join(filter(None, (package if node.level else "", node.module)))
