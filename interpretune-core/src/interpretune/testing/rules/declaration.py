"""Rules of the declaration and of hook signatures; none of them makes a session."""

from __future__ import annotations

import importlib.metadata
import inspect
import pickle

from packaging.requirements import InvalidRequirement, Requirement

from interpretune.errors import (
    AdapterImportError,
    AdapterSignatureError,
    ContractVersionError,
    InterpretuneError,
    StackError,
    UnknownAdapterError,
)
from interpretune.plugins.declaration import CONTRACT_VERSION, AdapterDeclaration
from interpretune.plugins.discovery import registered_adapters
from interpretune.plugins.stack import build_context
from interpretune.testing.rule import RuleBroken, RuleSkipped, expect, rule
from interpretune.testing.suite import Suite, registered_suite
from interpretune.testing.workbench import Bench


@rule()
def name_is_unique(bench: Bench) -> None:
    """One distribution registers the adapter's name."""
    owners = sorted({f"{x.distribution} {x.version}" for x in registered_adapters() if x.name == bench.adapter})
    expect(owners, f"no installed distribution registers an adapter {bench.adapter!r}", "one that does")
    expect(
        len(owners) == 1,
        f"the name {bench.adapter!r} is registered by {' and by '.join(owners)}",
        "one owner: no adapter can be looked up before one of these is uninstalled",
    )


@rule()
def importable(bench: Bench) -> None:
    """The adapter can be imported."""
    try:
        bench.installed.load()
    except AdapterImportError as error:
        raise RuleBroken(str(error), "an import without an error") from error


@rule()
def suite_loads(bench: Bench) -> None:
    """What is registered for the adapter in the group interpretune.conformance is its suite."""
    found = registered_suite(bench.adapter)
    if found is None:
        raise RuleSkipped("no suite is registered: the defaults are used")
    expect(
        isinstance(found, type) and issubclass(found, Suite) and found.adapter == bench.adapter,
        f"{found!r} is registered",
        f"a subclass of AdapterConformance with adapter = {bench.adapter!r}",
    )


@rule()
def an_instance_with_a_declaration(bench: Bench) -> None:
    """The entry point names an instance whose declaration has the entry point's name."""
    plugin = bench.plugin
    declaration = getattr(plugin, "declaration", None)
    if (
        not inspect.isclass(plugin)
        and isinstance(declaration, AdapterDeclaration)
        and declaration.name == bench.adapter
    ):
        return
    try:
        build_context((bench.adapter,))
    except AdapterSignatureError as error:
        seen = str(error)
    else:
        seen = f"{bench.installed.target} is {plugin!r} with the declaration {declaration!r}, and core took it"
    raise RuleBroken(seen, f"an instance with AdapterDeclaration(name={bench.adapter!r}, ...)")


@rule()
def contract_version(bench: Bench) -> None:
    """The adapter was written for a contract that this core speaks."""
    declaration = bench.declaration
    if declaration.speaks_current_contract:
        return
    try:
        build_context((bench.adapter,))
    except ContractVersionError as error:
        seen = str(error)
    else:
        seen = f"contract {declaration.contract}, and core took it"
    raise RuleBroken(seen, f"contract {CONTRACT_VERSION} or an earlier minor version of it")


@rule(after=["importable", "an-instance-with-a-declaration"])
def declaration_readable(bench: Bench) -> None:
    """The declaration can be read from the source, without an import."""
    declared, found = bench.declaration, bench.installed.read_declaration()
    expect(
        found is not None,
        f"{bench.installed.target} has no declaration that can be read without running it",
        "AdapterDeclaration(...) with literal arguments, in the module that the entry point names",
    )
    expect(found == declared, f"the source says {found}, the object {declared}", "one declaration")


@rule(after=["importable", "an-instance-with-a-declaration"])
def declaration_pickles(bench: Bench) -> None:
    """The declaration survives pickling: processes hand it to each other."""
    copy = pickle.loads(pickle.dumps(bench.declaration))  # noqa: S301 - its own bytes
    expect(copy == bench.declaration, f"unpickled it is {copy}", f"{bench.declaration}")


@rule(after=["importable", "an-instance-with-a-declaration"])
def hook_signatures(bench: Bench) -> None:
    """Every hook implementation is marked, has a hook's name, and takes no other arguments."""
    bench.declaration  # noqa: B018 - skips what is no adapter at all
    try:
        build_context((bench.adapter,))
    except AdapterSignatureError as error:
        if str(bench.installed) not in str(error):
            raise RuleSkipped(f"it is stacked with one that is broken: {error}") from error
        raise RuleBroken(str(error), "implementations that match interpretune/hookspecs.py") from error
    except InterpretuneError as error:
        raise RuleSkipped(f"it cannot be stacked: {type(error).__name__}") from error


@rule()
def requirements_installed(bench: Bench) -> None:
    """Adapters and distributions that it requires are installed, in versions that fit."""
    try:
        build_context((bench.adapter,))
    except UnknownAdapterError as error:
        raise RuleBroken(str(error), "every adapter that it requires") from error
    except (InterpretuneError, SystemExit):
        pass  # other rules say what is wrong with the adapter itself
    for text in importlib.metadata.requires(bench.installed.distribution) or ():
        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            raise RuleBroken(f"the requirement {text!r} of its distribution: {error}", "one that pip reads") from error
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError as error:
            raise RuleBroken(
                f"{bench.installed.distribution} requires {text}, which is not installed", f"`pip install '{text}'`"
            ) from error
        expect(
            wanted.specifier.contains(version, prereleases=True),
            f"{bench.installed.distribution} requires {text}; {wanted.name} {version} is installed",
            f"`pip install '{text}'`",
        )


@rule()
def stacks_alone(bench: Bench) -> None:
    """The adapter stacks with what it requires."""
    bench.declaration  # noqa: B018 - skips what is no adapter at all
    try:
        build_context(bench.stack)
    except StackError as error:
        raise RuleBroken(str(error), f"a stack of {', '.join(bench.stack)}") from error
    except InterpretuneError as error:
        raise RuleSkipped(f"it cannot be stacked: {type(error).__name__}") from error
