"""Rules of importing: listing costs nothing, importing costs little, and changes nothing. Each in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from interpretune.discovery import installed_adapters
from interpretune.errors import InterpretuneError
from interpretune.testing.bench import Bench
from interpretune.testing.rule import RuleBroken, RuleSkipped, expect, rule

TRIES = 3
"""A machine may be busy: the best of so many measurements counts."""

_IMPORT = "import"

LISTING = """
import json, sys
from interpretune.discovery import installed_adapters
for item in installed_adapters().values():
    item.read_declaration()
print(json.dumps(sorted(sys.modules)))
"""

IMPORTING = """
import importlib, json, sys, time
start = time.perf_counter()
import datasets, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
import interpretune.core_adapter
from interpretune.testing.global_state import GlobalState
usual = time.perf_counter() - start
before = GlobalState()
start = time.perf_counter()
importlib.import_module(sys.argv[1])
own = time.perf_counter() - start
changes, variables = before.changes_of_settings()
print(json.dumps({"usual": usual, "own": own, "changes": changes, "variables": variables}))
"""


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
def import_changes_nothing(bench: Bench) -> None:
    """Importing the adapter leaves settings, classes, hooks on all modules, environment and random states alone."""
    found = _first_import(bench)
    excused = bench.suite.environment_of_libraries
    variables = [name for name in found["variables"] if name not in excused]
    changes = [*found["changes"], *(f"environment variable {name}" for name in variables)]
    expect(not changes, f"after the import there is another {'; '.join(changes)}", "what was there before")


def _first_import(bench: Bench) -> Any:
    """One import of the adapter in a process of its own, shared by two rules."""
    bench.plugin  # noqa: B018 - skips what cannot be imported
    if _IMPORT not in bench.notes:
        bench.notes[_IMPORT] = _import(bench)
    return bench.notes[_IMPORT]


def _ratio(times: Any) -> float:
    return float(times["own"] / times["usual"])


def _import(bench: Bench) -> Any:
    return _in_fresh_process(IMPORTING, bench.installed.target.partition(":")[0])


def _in_fresh_process(code: str, *arguments: str) -> Any:
    paths = f"import sys; sys.path[:] = {sys.path!r}\n"  # adapters may be installed for this process alone
    run = subprocess.run(  # noqa: S603 - this interpreter, with the code above
        [sys.executable, "-c", paths + code, *arguments], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RuleBroken(f"a fresh process fails: {run.stderr.strip()[-500:]}", "an import without an error")
    return json.loads(run.stdout.splitlines()[-1])
