"""Finds installed adapters in packaging metadata; imports one only when it is asked for.

``installed_adapters()`` reads entry points and nothing else. The declaration of an adapter is read from its source
text (as build tools read a package's version), so that listing adapters costs no import.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attrs import frozen

from interpretune.declaration import AdapterDeclaration
from interpretune.errors import AdapterImportError, ConfigurationError, DuplicateAdapterError, UnknownAdapterError

ENTRY_POINT_GROUP = "interpretune.adapters"


@frozen
class InstalledAdapter:
    """An entry point of the group ``interpretune.adapters``, not yet imported.

    Attributes:
        name: Entry-point name.
        target: ``module:attribute`` of the adapter object.
        distribution: Name of the distribution that registers it.
        version: Version of that distribution.
    """

    name: str
    target: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.name!r} ({self.distribution} {self.version})"

    def load(self) -> Any:
        """Import the adapter object.

        Raises:
            AdapterImportError: The module or the attribute cannot be imported; the cause is chained.
        """
        entry_point = importlib.metadata.EntryPoint(self.name, self.target, ENTRY_POINT_GROUP)
        try:
            return entry_point.load()
        except Exception as error:  # whatever a stranger's module raises at import is reported with its owner
            raise AdapterImportError(
                f"Adapter {self} is installed but cannot be imported from {self.target!r}: "
                f"{type(error).__name__}: {error}. Repair it with `pip install --force-reinstall {self.distribution}`, "
                f"remove it with `pip uninstall {self.distribution}`, or leave {self.name!r} out of adapter_ctx."
            ) from error

    def read_declaration(self) -> AdapterDeclaration | None:
        """Read the declaration from the adapter's source text, without importing anything.

        Returns:
            The declaration, or None where it is not a literal call that can be read without running code.
        """
        source = _find_source(self.target.partition(":")[0])
        if source is None:
            return None
        try:
            tree = ast.parse(source.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            return None
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _called_name(node) == AdapterDeclaration.__name__:
                try:
                    values = {item.arg: ast.literal_eval(item.value) for item in node.keywords if item.arg}
                    declaration = AdapterDeclaration(**values)
                except (ValueError, TypeError, ConfigurationError):
                    continue
                if declaration.name == self.name:
                    return declaration
        return None


def _called_name(call: ast.Call) -> str | None:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else None


def _find_source(module: str) -> Path | None:
    """Path of a module's source file; finds submodules, also of namespace packages, without importing their parents."""
    package, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin is not None else None
    stems = [Path(folder, *rest) for folder in spec.submodule_search_locations or ()]
    candidates = [file for stem in stems for file in (stem / "__init__.py", stem.with_suffix(".py"))]
    return next((file for file in candidates if file.is_file()), None)


def registered_adapters() -> Iterator[InstalledAdapter]:
    """Every entry point of the group, also where two distributions register one name."""
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        distribution = entry_point.dist
        yield InstalledAdapter(
            name=entry_point.name,
            target=entry_point.value,
            distribution=distribution.name if distribution else "no distribution",
            version=distribution.version if distribution else "?",
        )


def installed_adapters() -> dict[str, InstalledAdapter]:
    """All installed adapters by name, sorted; read from metadata alone.

    Raises:
        DuplicateAdapterError: Two distributions register the same name.
    """
    found: dict[str, InstalledAdapter] = {}
    for adapter in registered_adapters():
        twin = found.setdefault(adapter.name, adapter)
        if twin.distribution != adapter.distribution:
            raise DuplicateAdapterError(
                f"Two distributions register the adapter {adapter.name!r}: {twin.distribution} {twin.version} "
                f"({twin.target}) and {adapter.distribution} {adapter.version} ({adapter.target}). "
                f"Uninstall one: `pip uninstall {twin.distribution}` or `pip uninstall {adapter.distribution}`."
            )
    return dict(sorted(found.items()))


def find_adapter(
    name: str, installed: Mapping[str, InstalledAdapter] | None = None, *, wanted_by: str | None = None
) -> InstalledAdapter:
    """Look one adapter up by name.

    Args:
        name: The adapter's name.
        installed: What is installed, if the caller has read it already.
        wanted_by: The adapter that requires this one, for the error message.

    Raises:
        UnknownAdapterError: Nothing of that name is installed; the message lists what is.
    """
    adapters = installed_adapters() if installed is None else installed
    if name in adapters:
        return adapters[name]
    near = get_close_matches(name, adapters, n=1)
    raise UnknownAdapterError(
        f"No installed adapter is called {name!r}"
        + (f", which {wanted_by} requires" if wanted_by else "")
        + f". Installed: {', '.join(adapters) or 'none'}."
        + (
            f" Did you mean {near[0]!r}?"
            if near
            else " By convention an adapter is published as interpretune-<name>: try `pip install interpretune-"
            f"{name.replace('_', '')}`."
        )
        + " `interpretune adapters` shows what is installed."
    )


class _InstalledNames(type):
    """Resolves ``Adapter.<name>`` against the installed adapters at the moment of the access."""

    def __getattr__(cls, name: str) -> Adapter:
        if name.startswith("_"):
            raise AttributeError(name)
        return Adapter(find_adapter(name).name)

    def __dir__(cls) -> list[str]:
        return [*super().__dir__(), *installed_adapters()]


class Adapter(str, metaclass=_InstalledNames):
    """The name of an adapter: an open set, one attribute for each installed adapter.

    ``Adapter.core == "core"``; plain strings work wherever an ``Adapter`` does.
    """

    __slots__ = ()
