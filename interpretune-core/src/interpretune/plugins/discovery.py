"""Finds installed adapters in packaging metadata, and imports one only when it is needed.

``installed_adapters()`` reads entry points and nothing else. The declaration of an adapter is read from its source
text (as build tools read a package's version), so that listing adapters costs no import.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attrs import field, frozen

from interpretune.errors import (
    AdapterImportError,
    AdapterSignatureError,
    DuplicateAdapterError,
    UnknownAdapterError,
)
from interpretune.plugins.declaration import AdapterDeclaration
from interpretune.system.entry_points import (
    UnreadableRegistration,
    first_line,
    import_registered,
    owner_of,
    registered,
    unreadable,
    versions_unmet,
)
from interpretune.system.requirements import UnmetRequirement, told

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
            AdapterImportError: What its distribution asks for is installed in another version, or the import fails.
        """
        if unmet := self.versions_unmet():
            raise AdapterImportError(f"Adapter {self}: {told(unmet)}, or leave {self.name!r} out of adapter_ctx.")
        return import_registered(
            importlib.metadata.EntryPoint(self.name, self.target, ENTRY_POINT_GROUP),
            self.distribution,
            lambda why: AdapterImportError(
                f"Adapter {self} is installed but cannot be imported from {self.target!r}: {why}. "
                f"Repair it with `pip install --force-reinstall {self.distribution}`, "
                f"remove it with `pip uninstall {self.distribution}`, or leave {self.name!r} out of adapter_ctx."
            ),
        )

    def versions_unmet(self) -> list[UnmetRequirement]:
        """What its distribution asks for and is installed in another version; empty where it is imported already."""
        return versions_unmet(self.target, self.distribution)

    def read_declaration(self) -> AdapterDeclaration | None:
        """Read the declaration from the adapter's source text, without importing anything.

        Returns:
            The declaration, or None if it is not a literal call that can be read without running code;
            ``why_unreadable`` says why.
        """
        found = self._declared()
        return found if isinstance(found, AdapterDeclaration) else None

    def why_unreadable(self) -> str:
        """Why ``read_declaration`` finds nothing, as text; empty if it finds the declaration."""
        found = self._declared()
        return "" if isinstance(found, AdapterDeclaration) else found

    def _declared(self) -> AdapterDeclaration | str:
        """The declaration, or why it cannot be read."""
        module = self.target.partition(":")[0]
        source = _find_source(module)
        if source is None:
            return f"declaration not readable: no Python source of the module {module!r} is found"
        try:
            tree = ast.parse(source.read_bytes(), filename=source.name)
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            declarations = [node for node in calls if _called_name(node) == AdapterDeclaration.__name__]
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return f"broken: {source.name} cannot be read as Python: {first_line(error)}"
        reason = (
            f"declaration not readable: {source.name} has no literal call AdapterDeclaration(name={self.name!r}, ...)"
        )
        for node in declarations:
            try:
                values = {item.arg: ast.literal_eval(item.value) for item in node.keywords if item.arg}
            except (ValueError, TypeError, RecursionError, MemoryError):
                continue  # computed when it runs
            try:
                declaration = AdapterDeclaration(**values)
            except (ValueError, TypeError) as error:
                if values.get("name", self.name) == self.name:
                    reason = f"broken: its declaration is refused: {first_line(error)}"
                continue
            if declaration.name == self.name:
                return declaration
        return reason


@frozen
class GivenAdapter(InstalledAdapter):
    """An adapter that is stacked as an object, made in a script or a notebook: nothing registers it.

    Attributes:
        plugin: The object.
    """

    plugin: Any = field(repr=False, eq=id)

    @classmethod
    def of(cls, plugin: Any) -> GivenAdapter:
        """The adapter that an object is, by its declaration.

        Raises:
            AdapterSignatureError: It has none, so that it is neither an adapter nor the name of one.
        """
        declaration = None if isinstance(plugin, type) else getattr(plugin, "declaration", None)
        if not isinstance(declaration, AdapterDeclaration):
            what = f"the class {plugin.__qualname__}" if isinstance(plugin, type) else f"a {type(plugin).__qualname__}"
            raise AdapterSignatureError(
                f"adapter_ctx has {what}, which is neither the name of an adapter nor an adapter. Give a name, or an "
                "instance with an AdapterDeclaration as its attribute `declaration`."
            )
        kind = type(plugin)
        return cls(declaration.name, f"{kind.__module__}:{kind.__qualname__}", "in memory", "", plugin)

    def __str__(self) -> str:
        return f"{self.name!r} (an object in memory)"

    def load(self) -> Any:
        """The object."""
        return self.plugin

    def versions_unmet(self) -> list[UnmetRequirement]:
        """Nothing says what it asks for."""
        return []


def with_given(
    adapter_ctx: Iterable[Any], installed: Mapping[str, InstalledAdapter]
) -> tuple[list[str], dict[str, InstalledAdapter]]:
    """Names of the adapters of ``adapter_ctx``, and the adapters by name, those among them that were given as objects.

    Raises:
        AdapterSignatureError: An item is neither a name nor an adapter.
        DuplicateAdapterError: Two objects have the same name, or one has that of another installed adapter.
    """
    names, found = [], dict(installed)
    for item in adapter_ctx:
        if isinstance(item, str):
            names.append(str(item))
            continue
        given = GivenAdapter.of(item)
        names.append(given.name)
        other = found.get(given.name)
        if other is None:
            found[given.name] = given
        elif other.load() is not item:
            raise DuplicateAdapterError(
                f"The adapter {given.name!r} of adapter_ctx, a {type(item).__qualname__}, has the name of {other}. "
                "Declare another name for it."
            )
    return names, found


def _called_name(call: ast.Call) -> str | None:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else None


def _find_source(module: str) -> Path | None:
    """Path of a module's source file; finds submodules, also of namespace packages, without importing their parents."""
    package, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin is not None else None
    stems = [Path(folder, *rest) for folder in spec.submodule_search_locations or ()]
    candidates = [file for stem in stems for file in (stem / "__init__.py", stem.with_suffix(".py"))]
    return next((file for file in candidates if file.is_file()), None)


def registered_adapters() -> Iterator[InstalledAdapter]:
    """Every entry point of the group, including names that two distributions register.

    Distributions whose entry points cannot be read are left out; ``unreadable_registrations`` lists them.
    """
    for entry_point in registered(ENTRY_POINT_GROUP):
        name, version = owner_of(entry_point)
        yield InstalledAdapter(entry_point.name, entry_point.value, distribution=name, version=version)


def unreadable_registrations() -> list[UnreadableRegistration]:
    """Distributions that seem to register an adapter, and whose entry points cannot be read."""
    return unreadable(ENTRY_POINT_GROUP)


def installed_adapters() -> dict[str, InstalledAdapter]:
    """All installed adapters by name, sorted, read from metadata only.

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
    """Look one adapter up by name; the ``UnknownAdapterError`` lists those that are installed."""
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
        + "".join(f" The entry points of {item} cannot be read." for item in unreadable_registrations())
        + " `interpretune adapters` shows what is installed."
    )


class _InstalledNames(type):
    """Looks ``Adapter.<name>`` up among the installed adapters on each access."""

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
