"""What a function names: globals, members of modules of somebody's own, and what it imports when it runs.

Of a module of somebody's own that is used in any way but by its members, all members count. Nothing is imported: a
module that was not, counts by its source and by what that imports.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from attrs import frozen

from interpretune.hashing.code_origin import CORE, version_of_file, version_of_name
from interpretune.hashing.code_owner import origin_of
from interpretune.hashing.content import Content, UnknownState

LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
MEMBERS = ("LOAD_ATTR", "LOAD_METHOD")
Part = tuple[str, Any]


@frozen(eq=False)
class NotImported:
    """A module of somebody's own that nobody has imported yet."""

    name: str
    file: str | None

    def content(self) -> Content:
        """Its source, and what that imports."""
        if self.file is None:
            return Content(f"module {self.name}", [])
        source = Path(self.file).read_bytes()
        parts: list[Part] = [(".source", hashlib.sha256(source).digest())]
        if self.file.endswith(".py"):
            try:
                code = compile(source, self.file, "exec", dont_inherit=True)
            except (SyntaxError, ValueError):  # whoever imports it gets this error
                return Content(f"module {self.name}", parts)
            package = self.name if Path(self.file).name == "__init__.py" else self.name.rpartition(".")[0]
            parts += _imports_of(code, package)
        return Content(f"module {self.name}", parts)


@frozen(eq=False)
class MadeWhenAsked:
    """A member that a module makes when it is asked for, and did not make yet."""

    module: str
    name: str

    def content(self) -> Content:
        """There is none: always raises ``UnknownState``."""
        raise UnknownState(f"it imports {self.name} from {self.module}, which makes it only then")


def named_parts(function: FunctionType) -> list[Part]:
    """Globals that a function names, and what it imports."""
    known = function.__globals__
    parts: dict[str, Any] = {}
    for code in with_inner(function.__code__):
        steps = instructions(code)
        for at, step in enumerate(steps):
            if step.opname in LOADS and step.argval in known:
                path, value = _used(known, steps, at)
                parts[f":{path}"] = value
            elif step.opname in LOADS and step.argval == "globals":
                texts = {item for inner in with_inner(function.__code__) for item in inner.co_consts if item in known}
                parts |= {f":{name}": known[name] for name in texts}
    return [*sorted(parts.items()), *_imports_of(function.__code__, str(known.get("__package__") or ""))]


@functools.lru_cache(maxsize=4096)
def instructions(code: CodeType) -> tuple[dis.Instruction, ...]:
    """Instructions of a code object, as all processes see them."""
    return tuple(step for step in dis.get_instructions(code) if step.opname not in ("EXTENDED_ARG", "CACHE"))


def with_inner(code: CodeType) -> Iterable[CodeType]:
    """A code object and those of the functions and classes in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from with_inner(constant)


def _used(known: dict[str, Any], steps: tuple[dis.Instruction, ...], at: int) -> Part:
    """What is used of a global: it, or a member where it is a module of somebody's own."""
    path = str(steps[at].argval)
    value = known[path]
    for step in steps[at + 1 :]:
        own_module = isinstance(value, ModuleType) and origin_of(value) is None
        if not own_module or step.opname not in MEMBERS or step.argval not in vars(value):
            break
        path, value = f"{path}.{step.argval}", vars(value)[step.argval]
    return path, value


# ------------------------------------------------------------------------------------------------------------- imports


def _imports_of(code: CodeType, package: str) -> Iterator[Part]:
    imported: dict[tuple[str, int, tuple[str, ...]], None] = {}
    for inner in with_inner(code):
        steps = instructions(inner)
        for at, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                imported[str(step.argval), steps[at - 2].argval or 0, tuple(steps[at - 1].argval or ())] = None
    for name, level, members in imported:
        try:
            full = importlib.util.resolve_name("." * level + name, package) if level else name
        except ImportError:
            yield f":import {name}", Content("absent", [])
            continue
        above = full.split(".")[:-1]
        for end in range(1, len(above) + 1):
            parent = ".".join(above[:end])
            if not members or parent not in sys.modules:  # its code runs then, or it gets a name
                yield f":import {parent}", _module(parent)
        if not members:
            yield f":import {full}", _module(full)
        for member in members:
            yield f":from {full} import {member}", _member(full, member)


def _module(full: str) -> Any:
    """A module by its full name, as it is imported, or what is known of it without."""
    top = full.partition(".")[0]
    version = CORE if top == CORE else version_of_name(top)
    if version is not None:
        return Content(f"module {full}", [(".origin", version)])
    if full in sys.modules:
        module = sys.modules[full]
        return Content(f"absent {full}", []) if module is None else module
    spec = _spec_of(full)
    if spec is None:
        return Content(f"absent {full}", [])
    file = spec.origin if spec.has_location else None
    version = None if file is None else version_of_file(top, file)
    return _not_imported(full, file) if version is None else Content(f"module {full}", [(".origin", version)])


def _member(full: str, name: str) -> Any:
    """What ``from full import name`` gives."""
    module = _module(full)
    if isinstance(module, Content) or name == "*":
        return module
    if isinstance(module, NotImported):
        below = _module(f"{full}.{name}")
        return [module, *([] if isinstance(below, Content) else [below])]
    held = getattr(module, "__dict__", {})
    if name in held:
        return held[name]
    below = _module(f"{full}.{name}")
    return MadeWhenAsked(full, name) if isinstance(below, Content) and "__getattr__" in held else below


@functools.lru_cache(maxsize=4096)
def _not_imported(name: str, file: str | None) -> NotImported:
    """One object for a module, since modules import each other in circles."""
    return NotImported(name, file)


def _spec_of(full: str) -> ModuleSpec | None:
    """Where a module is; as ``importlib.util.find_spec``, but without importing the packages above it."""
    parent = full.rpartition(".")[0]
    try:
        if not parent:
            return importlib.util.find_spec(full)
        above = sys.modules.get(parent) or _spec_of(parent)
        places = getattr(above, "__path__", None) or getattr(above, "submodule_search_locations", None)
        return PathFinder.find_spec(full, places) if places else None
    except (ImportError, ValueError, AttributeError):  # of finders that somebody installed, too
        return None
