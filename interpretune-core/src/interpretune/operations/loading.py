"""Operations from elsewhere: adapters of the stack, installed packages, local files, and remote files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec  # type: ignore[import-untyped]

from interpretune.errors import PlanError
from interpretune.operations.definition import Operation
from interpretune.system.entry_points import load_registered, registered

ENTRY_POINTS = "interpretune.operations"
"""Group of entry points that name operations of installed packages."""


def find_operation(name: str, offered: Mapping[str, Operation] | None = None) -> Operation:
    """An operation by name: one of those that are offered, or from an installed package.

    Packages list theirs in the entry-point group ``interpretune.operations``; only the requested one is imported.

    Args:
        name: The name.
        offered: By name; ``offered_operations(module)`` has those of a session's adapters.

    Raises:
        PlanError: There is no such operation, or the object found is not an operation.
    """
    if offered and name in offered:
        return offered[name]
    found = {item.name: item for item in registered(ENTRY_POINTS)}
    if name not in found:
        known = ", ".join(sorted({*(offered or ()), *found})) or "none"
        raise PlanError(f"There is no operation {name!r}. Adapters and packages offer {known}.")
    told = f"The operation {name!r} ({found[name].value}) cannot be imported"
    loaded = load_registered(found[name], lambda why: PlanError(f"{told}: {why}"))
    if not isinstance(loaded, Operation):
        raise PlanError(f"{found[name].value} is a {type(loaded).__name__}; decorate a function with @operation.")
    return loaded


def load_operations(source: str | Path, trusted: Mapping[str, str] | None = None) -> dict[str, Operation]:
    """Operations from Python files, by name.

    Args:
        source: A file or a folder of files on this machine, whose code is run; or an address that fsspec knows
            (``https://...``, ``hf://...``), whose code is run only if ``trusted`` allows it.
        trusted: For an address: SHA-256 of each file that may run, by file name.

    Raises:
        PlanError: Nothing is found; a file fails; two operations have the same name; or a remote file is not listed in
            ``trusted`` with its hash.
    """
    address = str(source)
    if "://" not in address:
        texts = {path.name: path.read_bytes() for path in _files(Path(source))}
    else:
        texts = _fetch(address)
        seen = {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
        if refused := {name: hash_ for name, hash_ in seen.items() if (trusted or {}).get(name) != hash_}:
            raise PlanError(
                f"{address} is code from elsewhere, which runs only when you name it with its hash. Read it, and if "
                f"you trust it give trusted={refused!r}."
            )
    operations: list[Operation] = []
    for name, text in texts.items():
        operations += _run_file(name, text, address)
    if not operations:
        raise PlanError(f"{address} holds no operation: decorate functions with @operation.")
    return by_name(operations, address)


def _files(source: Path) -> list[Path]:
    files = sorted(source.glob("*.py")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        raise PlanError(f"{source} is no Python file and no folder of Python files.")
    return files


def _fetch(address: str) -> dict[str, bytes]:
    try:
        system, path = fsspec.core.url_to_fs(address)
        names = [path] if address.endswith(".py") else sorted(system.glob(f"{path.rstrip('/')}/*.py"))
        return {name.rsplit("/", 1)[-1]: system.cat_file(name) for name in names}
    except (OSError, ImportError, ValueError) as error:
        raise PlanError(f"{address} cannot be read: {error}") from error


def _run_file(name: str, text: bytes, address: str) -> list[Operation]:
    module = ModuleType(f"interpretune_operations.{Path(name).stem}")
    module.__file__ = name
    namespace: dict[str, Any] = module.__dict__
    try:
        exec(compile(text, f"{address}/{name}", "exec"), namespace)  # noqa: S102 - what the caller asked for
    except Exception as error:
        raise PlanError(f"{name} of {address} fails when it is loaded: {type(error).__name__}: {error}") from error
    return [value for value in namespace.values() if isinstance(value, Operation)]


def by_name(operations: Iterable[Operation], where: str) -> dict[str, Operation]:
    """Operations by name.

    Args:
        operations: The operations.
        where: Where they come from, for the error.

    Raises:
        PlanError: Two of them have the same name.
    """
    named: dict[str, Operation] = {}
    for op in operations:
        if named.setdefault(op.name, op) is not op:
            raise PlanError(f"Two operations of {where} are called {op.name}.")
    return named
