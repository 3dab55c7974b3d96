"""Names of a namespace that are loaded when they are used, wherever in the package they are defined."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lazy_loader


def attach_stub(file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a namespace, read from the stub beside it.

    As ``lazy_loader.attach_stub``, which takes names only from modules below the namespace.

    Args:
        file: ``__file__`` of the namespace; its stub says ``from interpretune.<module> import <names>``.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    names: dict[str, list[str]] = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names.setdefault(node.module.removeprefix("interpretune."), []).extend(alias.name for alias in node.names)
    return lazy_loader.attach("interpretune", submod_attrs=names)
