"""What imports change, of broken adapters and of those of this repository: one after the other in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from typing import Any

import pytest

import interpretune as it
from interpretune.testing import RULES
from interpretune.testing.conformance import suite_of
from interpretune.testing.doctor import PASSED, check_suite
from interpretune.testing.environment import ENVIRONMENT
from interpretune.testing.rules import importing
from tests.broken_adapters.checking import IMPORT_RULES, PACKAGE, check_adapter, rules_beside
from tests.broken_adapters.expected import EXPECTED, IMPORTED_TOGETHER, SLOW_IMPORT, SOUND
from tests.broken_adapters.expected_of_runs import IMPORTS

OURS = ("hello", "lightning", "nnsight", "sae_lens", "tensorboard", "transformer_lens")
IMPORTING = """
import importlib, json, sys, time
start = time.perf_counter()
for library in ("datasets", "torch", "transformers", "transformers.models.llama", "interpretune.adapters.core"):
    importlib.import_module(library)
usual = time.perf_counter() - start
from interpretune.testing.import_watch import watched_import
found = {target: {**watched_import(target, own), "usual": usual} for target, own in json.loads(sys.argv[1])}
sys.stdout.write("\\n" + json.dumps(found))
"""


def target(name: str) -> str:
    return f"{PACKAGE}.{name}:adapter"


@pytest.fixture(scope="module")
def imports() -> dict[str, Any]:
    """By what is imported: a sound one, the slow one, which takes half as long as all before, ours, then the broken."""
    ours = [it.installed_adapters()[name] for name in OURS if name in it.installed_adapters()]
    broken = [name for name in IMPORTED_TOGETHER if name != SLOW_IMPORT] + [f"variants.{name}" for name in IMPORTS]
    asked = [
        *((target(name), ["tests"]) for name in (SOUND, SLOW_IMPORT)),
        *((item.target, importing.own_modules(item)) for item in ours),
        *((target(name), ["tests"]) for name in broken),
    ]
    run = subprocess.run(
        [sys.executable, "-c", IMPORTING, json.dumps(asked)],
        env={**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture
def imported(imports: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of imports look at what is known."""
    monkeypatch.setattr(importing, "_import", lambda bench: imports[bench.installed.target])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong adapter may well warn
        yield


@pytest.mark.parametrize("name", OURS)
def test_ours_are_imported_quickly_and_change_nothing(imports, imported, name, tmp_path):
    if name not in it.installed_adapters():
        pytest.skip("not installed")
    suite = suite_of(name)
    verdicts = list(check_suite(suite, tmp_path / "bench", [RULES[rule] for rule in IMPORT_RULES]))
    assert [(item.rule.id, item.message) for item in verdicts if item.outcome != PASSED] == []
    assert not imports[it.installed_adapters()[name].target]["already"]


@pytest.mark.parametrize("name", IMPORTED_TOGETHER)
def test_a_broken_adapter_breaks_its_rule_and_none_beside(imported, name):
    check_adapter(name, rules_beside(EXPECTED[name][0]))


@pytest.mark.parametrize("variant", IMPORTS)
def test_what_an_import_changes_is_told(imports, variant):
    rule, name = IMPORTS[variant]
    found = imports[target(f"variants.{variant}")]
    told = {"import-patches-nothing": found["replaced"], "import-changes-nothing": found["changes"]}
    assert any(name in item for item in told[rule])
    assert imports[target(SOUND)]["changes"] == imports[target(SOUND)]["replaced"] == []
