"""Computes the stack of a session from the adapters' declarations and builds its execution context."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from typing import Any

import pluggy
from attrs import field, frozen

from interpretune import hookspecs
from interpretune.errors import AdapterSignatureError, ContractVersionError, StackError
from interpretune.hashing.code_origin import note_source
from interpretune.hookspecs import INTRODUCED_IN
from interpretune.markers import PROJECT_NAME
from interpretune.plugins.contributions import ClassContribution
from interpretune.plugins.declaration import CONTRACT_VERSION, AdapterDeclaration, Level
from interpretune.plugins.discovery import InstalledAdapter, find_adapter, installed_adapters, with_given
from interpretune.plugins.hook_caller import HookCallers
from interpretune.system.html_table import html_table

CORE = "core"
SINGLE_OWNER_HOOKS = ("it_load_model",)
"""Hooks that only one adapter besides core may implement; ``firstresult`` alone would hide a second one."""

HOOK_NAMES: tuple[str, ...] = tuple(name for name in vars(hookspecs) if name.startswith("it_"))
"""The hooks of the contract, in the order in which they happen."""


@frozen
class StackedAdapter:
    """An adapter in a stack: where it is installed, what it declares, and the object itself."""

    installed: InstalledAdapter
    declaration: AdapterDeclaration
    plugin: Any = field(repr=False)

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.declaration.name


@frozen
class ExecutionContext:
    """The immutable stack of one session, with its own plugin manager.

    Attributes:
        adapters: The stack, core first.
        hook: Calls a hook on the whole stack: ``context.hook.it_forward(module=..., batch=...)``.
        contributions: The classes that the adapters contribute, in stack order.
    """

    adapters: tuple[StackedAdapter, ...]
    hook: HookCallers = field(repr=False, eq=False)
    contributions: tuple[ClassContribution, ...] = field(repr=False, eq=False)

    def identity(self) -> tuple[str, ...]:
        """What counts in hashes: the names of the adapters. Their code counts separately, once per session."""
        return self.names

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stacked adapters, core first."""
        return tuple(adapter.name for adapter in self.adapters)

    def answers(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """For each hook of the contract, the adapters that implement it, in call order; wrappers are marked."""
        for name in HOOK_NAMES:
            implementations = reversed(getattr(self.hook, name).get_hookimpls())
            yield (
                name,
                tuple(
                    f"{impl.plugin_name} (wrapper)" if impl.wrapper or impl.hookwrapper else impl.plugin_name
                    for impl in implementations
                ),
            )

    def bases(self, kind: str) -> Iterator[tuple[str, type]]:
        """The contributed bases of one kind (a field of ``ClassContribution``), from the top of the stack down."""
        for contribution in reversed(self.contributions):
            for base in getattr(contribution, kind):
                yield contribution.adapter, base

    def _repr_html_(self) -> str:
        rows = [
            {
                "adapter": item.name,
                "level": item.declaration.level,
                "from": f"{item.installed.distribution} {item.installed.version}",
                "requires": ", ".join(item.declaration.requires),
                "answers": ", ".join(hook for hook, owners in self.answers() if item.name in owners),
            }
            for item in self.adapters
        ]
        return html_table("Stack, lowest first", rows)

    def __str__(self) -> str:
        lines = ["Stack, lowest first:"]
        for adapter in self.adapters:
            about = adapter.declaration
            needs = f", requires {', '.join(about.requires)}" if about.requires else ""
            needs += f", {about.default_model} by default" if about.default_model else ""
            needs += "".join(f", {word} {', '.join(names)}" for word, names in _order(about).items() if names)
            lines.append(
                f"  {about.name:<18} {about.level!s:<10} {adapter.installed.distribution} "
                f"{adapter.installed.version}{needs}"
            )
        lines.append("Hooks, answered in call order:")
        lines += [f"  {name:<24} {', '.join(owners) or '-'}" for name, owners in self.answers()]
        lines.append("Composed classes, first base first:")
        for kind in ("module", "datamodule", "module_cfg", "datamodule_cfg"):
            entries = self.bases(f"{kind}_entry") if "cfg" not in kind else ()
            before, behind = (
                [f"{base.__qualname__} ({owner})" for owner, base in some] for some in (entries, self.bases(kind))
            )
            own = "your class" if "cfg" not in kind else "your mixin"
            lines.append(f"  {kind:<18} {', '.join([*before, own, *(behind or ['-'])])}")
        return "\n".join(lines)


def build_context(adapter_ctx: Iterable[Any]) -> ExecutionContext:
    """Stack adapters by name or as objects, those they require, a default model adapter if one is needed, and core.

    Returns:
        The execution context: the same for every order of the same names.

    Raises:
        UnknownAdapterError: A named or required adapter is not installed.
        AdapterImportError: An adapter fails to import.
        AdapterSignatureError: An adapter object or one of its hook implementations has the wrong form.
        ContractVersionError: An adapter was written for another contract.
        DuplicateAdapterError: Two distributions register one name, or an object has that of an installed adapter.
        StackError: The adapters conflict or require each other, two of them load the model, or two model adapters would
            be added by default.
    """
    given = (adapter_ctx,) if isinstance(adapter_ctx, str) else adapter_ctx  # ("core") is easily written for ("core",)
    named, installed = with_given(given, installed_adapters())
    ordered = order_stack(_with_default_model(_with_requirements((CORE, *named), installed), installed))
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    for adapter in reversed(ordered):  # pluggy calls the last registered first
        _register(manager, adapter)
    for name in SINGLE_OWNER_HOOKS:
        owners = [
            impl.plugin_name
            for impl in getattr(manager.hook, name).get_hookimpls()
            if impl.plugin_name != CORE and not impl.wrapper and not impl.hookwrapper
        ]
        if len(owners) > 1:
            raise StackError(
                f"Adapters {' and '.join(map(repr, sorted(owners)))} both implement {name}, which has one owner. "
                "Stack one of them, or let one declare that it conflicts with the other."
            )
    contributions = tuple(manager.hook.it_contribute_classes())
    for contribution in contributions:
        if not isinstance(contribution, ClassContribution):
            owners = [impl.plugin_name for impl in manager.hook.it_contribute_classes.get_hookimpls()]
            stacked = ", ".join(str(adapter.installed) for adapter in ordered if adapter.name in owners[:-1])
            raise AdapterSignatureError(
                f"it_contribute_classes returned {contribution!r}, which is not a ClassContribution; one of "
                f"{stacked} did. Return `ClassContribution(adapter=..., ...)` or None."
            )
    return ExecutionContext(tuple(ordered), HookCallers(manager.hook, HOOK_NAMES), contributions)


def _with_requirements(names: Iterable[str], installed: Mapping[str, InstalledAdapter]) -> dict[str, StackedAdapter]:
    """Import the named adapters and, transitively, those they require."""
    stacked: dict[str, StackedAdapter] = {}
    waiting: list[tuple[str, str | None]] = [(name, None) for name in names]
    while waiting:
        name, wanted_by = waiting.pop(0)
        if name in stacked:
            continue
        stacked[name] = _stack(find_adapter(name, installed, wanted_by=wanted_by))
        waiting += [(needed, str(stacked[name].installed)) for needed in stacked[name].declaration.requires]
    return stacked


def _with_default_model(
    stacked: dict[str, StackedAdapter], installed: Mapping[str, InstalledAdapter]
) -> dict[str, StackedAdapter]:
    """Add the model adapter that a stacked adapter uses by default, unless the stack already has one."""
    if any(adapter.declaration.level is Level.model for adapter in stacked.values()):
        return stacked
    refused = {enemy for adapter in stacked.values() for enemy in adapter.declaration.conflicts}
    wanted = {
        name: adapter
        for adapter in stacked.values()
        if (name := adapter.declaration.default_model) in installed and name not in refused
    }
    if len(wanted) > 1:
        wishes = " and ".join(f"{adapter.installed} {name!r}" for name, adapter in wanted.items())
        raise StackError(
            f"No model adapter is named, and {wishes} would be added by default, of which a stack has one. Name the "
            "one that you want in adapter_ctx."
        )
    return {**stacked, **_with_requirements(map(str, wanted), installed)}


def _stack(installed: InstalledAdapter) -> StackedAdapter:
    """Import one adapter and check the form of the object and its declaration."""
    plugin = installed.load()
    note_source(installed.target.partition(":")[0].partition(".")[0])
    if inspect.isclass(plugin):
        raise AdapterSignatureError(
            f"Adapter {installed}: {installed.target!r} is the class {plugin.__qualname__}, but an adapter is an "
            f"instance. Register an instance: `adapter = {plugin.__qualname__}()`, and point the entry point at it."
        )
    declaration = _guarded(f"Adapter {installed}: reading its attribute `declaration`", plugin, "declaration")
    if not isinstance(declaration, AdapterDeclaration):
        raise AdapterSignatureError(
            f"Adapter {installed}: {installed.target!r} has no AdapterDeclaration as its attribute `declaration` "
            f"(found {declaration!r}). Add `declaration = AdapterDeclaration(name={installed.name!r}, level=..., "
            "contract=...)`."
        )
    if declaration.name != installed.name:
        raise AdapterSignatureError(
            f"Adapter {installed} declares the name {declaration.name!r}. The entry point and the declaration must "
            "name the adapter alike; change one of them."
        )
    if not declaration.speaks_current_contract:
        raise ContractVersionError(
            f"Adapter {installed} was written for contract {declaration.contract}; this core speaks "
            f"{CONTRACT_VERSION}. Install a version of {installed.distribution} for contract "
            f"{CONTRACT_VERSION.split('.')[0]}, or another version of interpretune-core."
        )
    return StackedAdapter(installed, declaration, plugin)


def order_stack(stacked: Mapping[str, StackedAdapter]) -> list[StackedAdapter]:
    """Order adapters: core first, then by level, each above what it requires and as it declares, ties by name.

    Raises:
        StackError: Two adapters conflict, or what they declare forms a cycle or contradicts the levels.
    """
    for name, adapter in stacked.items():
        for enemy in adapter.declaration.conflicts:
            if enemy in stacked:
                raise StackError(
                    f"Adapter {adapter.installed} declares a conflict with {stacked[enemy].installed}: they cannot "
                    f"share a stack. Leave {name!r} or {enemy!r} out of adapter_ctx."
                )

    def below(lower: StackedAdapter, upper: StackedAdapter) -> bool:
        declared = lower.name in (*upper.declaration.requires, *upper.declaration.after)
        declared = declared or upper.name in lower.declaration.before
        return declared or lower.declaration.level.rank < upper.declaration.level.rank or lower.name == CORE

    def weight(name: str) -> tuple[int, str]:
        return stacked[name].declaration.level.rank, name

    graph = {
        upper.name: {lower.name for lower in stacked.values() if lower is not upper and below(lower, upper)}
        for upper in stacked.values()
    }
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(f"{name} ({_standing(stacked[name].declaration)})" for name in error.args[1])
        owners = " and ".join(str(stacked[name].installed) for name in sorted({*error.args[1]}))
        raise StackError(
            f"The stack has a cycle: {circle}. An adapter stands above what it requires, above every lower level, and "
            f"`before` (below) or `after` (above) the adapters that it names so; the declarations of {owners} "
            "cannot all hold."
        ) from error
    ordered: list[StackedAdapter] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=weight)
        ordered += [stacked[name] for name in ready]
        sorter.done(*ready)
    return ordered


def _standing(declaration: AdapterDeclaration) -> str:
    """What a declaration says of where its adapter stands."""
    parts = [str(declaration.level), f"requires {', '.join(declaration.requires) or 'nothing'}"]
    return ", ".join([*parts, *(f"{word} {', '.join(names)}" for word, names in _order(declaration).items() if names)])


def _order(declaration: AdapterDeclaration) -> dict[str, tuple[str, ...]]:
    return {"before": declaration.before, "after": declaration.after}


def _guarded(doing: str, plugin: Any, name: str) -> Any:
    """An attribute of a third-party object, or None if it has none."""
    try:
        return getattr(plugin, name, None)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise AdapterSignatureError(
            f"{doing} raised {type(error).__name__}: {error}. Attributes of an adapter must be there without a session."
        ) from error


def _register(manager: pluggy.PluginManager, adapter: StackedAdapter) -> None:
    """Register one adapter, and refuse hooks that do not fit the contract."""
    where = f"Adapter {adapter.installed}"
    for name in dir(adapter.plugin):
        member = _guarded(f"{where}: reading its attribute `{name}`", adapter.plugin, name)
        if not callable(member):
            continue
        marker = getattr(member, f"{PROJECT_NAME}_impl", None)
        if marker is None:
            if name.startswith("it_"):
                raise AdapterSignatureError(f"{where}: {name} is not marked. Put @interpretune.hookimpl above it.")
            continue
        if name not in HOOK_NAMES:
            near = get_close_matches(name, HOOK_NAMES, n=1)
            raise AdapterSignatureError(
                f"{where} implements {name}, which is not a hook of contract {CONTRACT_VERSION}."
                + (f" Did you mean {near[0]}?" if near else f" The hooks are {', '.join(HOOK_NAMES)}.")
            )
        since = INTRODUCED_IN[name]
        if not adapter.declaration.knows(since):
            raise AdapterSignatureError(
                f"{where} implements {name}, which came with contract {since}, and declares that it was written for "
                f"contract {adapter.declaration.contract}: an older core would never call it. Declare "
                f"contract={since!r}."
            )
        if adapter.name != CORE and (marker["tryfirst"] or marker["trylast"]):
            raise AdapterSignatureError(
                f"{where}: {name} is marked tryfirst or trylast, which are reserved for core. Order follows from "
                "`level`, `requires`, `before` and `after` of the declaration."
            )
        if inspect.ismethod(member) and next(iter(inspect.signature(member.__func__).parameters), "") != "self":
            raise AdapterSignatureError(
                f"{where}: {name}{inspect.signature(member.__func__)} is a method without `self`. Add `self` as its "
                "first argument."
            )
    try:
        manager.register(adapter.plugin, name=adapter.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise AdapterSignatureError(
            f"{where} has a hook implementation that does not match the contract: {error}. The specifications stand "
            "in interpretune/hookspecs.py."
        ) from error
