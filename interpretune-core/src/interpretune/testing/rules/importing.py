"""Rules of importing: listing costs nothing, importing costs little, and changes nothing. Each in a fresh process."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from typing import Any

from interpretune.errors import InterpretuneError
from interpretune.plugins.discovery import InstalledAdapter, installed_adapters
from interpretune.testing.environment import ENVIRONMENT
from interpretune.testing.rule import RuleBroken, RuleSkipped, expect, rule, some
from interpretune.testing.workbench import Bench

TRIES = 3
"""A machine may be busy: the best of so many measurements counts."""

_IMPORT = "import"

LISTING = """
import json, sys
from interpretune.plugins.discovery import InstalledAdapter, installed_adapters
for item in installed_adapters().values():
    item.read_declaration()
print(json.dumps(sorted(sys.modules)))
"""

WATCHING = """
import runpy
runpy.run_module("interpretune.testing.import_watch", run_name="__main__", alter_sys=True)
"""

OF_COMMANDS = ("HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "INTERPRETUNE_CACHE", "TQDM_DISABLE", "HOME")
"""Variables that whoever starts the checks sets for them."""

SHOWN = 4
"""Names in a message."""

PARTS = 3
"""A top-level module is a file or a folder; what lies deeper belongs to it."""


@rule()
def listed_without_import(bench: Bench) -> None:
    """Listing adapters with their declarations imports neither the adapter nor anything heavy."""
    try:
        installed_adapters()
    except InterpretuneError as error:
        raise RuleSkipped(str(error)) from error
    loaded = set(_in_fresh_process(LISTING))
    module = bench.installed.target.partition(":")[0]
    own = module if module.startswith("interpretune.") else module.partition(".")[0]
    heavy = sorted(name for name in {own, "torch", "transformers", "datasets"} if name in loaded)
    expect(not heavy, f"listing adapters imports {', '.join(heavy)}", "no import: declarations are read as text")


@rule()
def import_is_cheap(bench: Bench) -> None:
    """Importing the adapter takes no longer than a few times the import of torch and transformers."""
    limit, ratios = bench.suite.import_limit, [_ratio(_first_import(bench))]
    while len(ratios) < TRIES and min(ratios) > limit:
        ratios.append(_ratio(_import(bench)))
    expect(
        min(ratios) <= limit,
        f"importing {bench.installed.target} takes {min(ratios):.2f} times as long as importing torch and transformers",
        f"at most {limit:g} times: import what is heavy inside of the hooks that need it",
    )


@rule()
def import_patches_nothing(bench: Bench) -> None:
    """Importing the adapter replaces no function, class or method of torch, transformers, numpy, datasets or Python."""
    replaced = _first_import(bench)["replaced"]
    expect(
        not replaced,
        f"after the import there is another {some(replaced, SHOWN)}",
        "what was there before: every session of the process runs this code, with the adapter or without",
    )


@rule(after=["import-patches-nothing"])
def import_changes_nothing(bench: Bench) -> None:
    """Importing the adapter leaves settings, hooks on all modules, environment, filters, loggers and seeds alone."""
    changes = _first_import(bench)["changes"]
    expect(not changes, f"after the import there is another {'; '.join(changes)}", "what was there before")


def _first_import(bench: Bench) -> Any:
    """One import of the adapter in a process of its own, shared by several rules."""
    if "importable" in bench.broken:
        raise bench.lacking("the adapter cannot be imported: see the rule importable", ["importable"])
    if _IMPORT not in bench.notes:
        bench.notes[_IMPORT] = _import(bench)
    return bench.notes[_IMPORT]


def _ratio(times: Any) -> float:
    return float(times["seconds"] / times["usual"])


def _import(bench: Bench) -> Any:
    found = _in_fresh_process(WATCHING, bench.installed.target, *own_modules(bench.installed))
    expect(
        not found["already"],
        f"{bench.installed.target} is imported before anybody asks for it, when Python, torch or transformers start",
        "an import on demand: no .pth file and no plugin of another library imports the adapter",
    )
    return found


def own_modules(installed: InstalledAdapter) -> list[str]:
    """The top-level modules of an adapter's distribution."""
    names = {installed.target.partition(":")[0].partition(".")[0]}
    try:
        files = importlib.metadata.distribution(installed.distribution).files or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    names |= {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py" and len(file.parts) < PARTS}
    return sorted(name for name in names if name.isidentifier())


def _in_fresh_process(code: str, *arguments: str) -> Any:
    """Run code in a process that has the environment of this one before adapters were imported here."""
    paths = f"import sys; sys.path[:] = {sys.path!r}\n"  # adapters may be installed for this process alone
    kept = {name: os.environ[name] for name in OF_COMMANDS if name in os.environ}
    run = subprocess.run(  # noqa: S603 - this interpreter, with the code above
        [sys.executable, "-c", paths + code, *arguments],
        env={**ENVIRONMENT, **kept},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuleBroken(f"a fresh process fails: {run.stderr.strip()[-500:]}", "an import without an error")
    return json.loads(run.stdout.splitlines()[-1])
