"""A bug is found in other forms too: a rule is about what goes wrong, not about how it was once written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import pytest

from interpretune.testing import RULES
from interpretune.testing.doctor import FAILED, PASSED
from interpretune.testing.environment import ENVIRONMENT
from tests.broken_adapters.checking import verdicts_on
from tests.broken_adapters.expected import SOUND
from tests.broken_adapters.expected_of_runs import FOUND_IN_RUNS, IMPORTS, VARIANTS, variants

SOUND_FRAMEWORK = "misbehaving.sound_framework"


@pytest.fixture(autouse=True)
def warnings_are_no_errors():
    """A wrong adapter may well warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_form_of_a_bug_breaks_its_rule(variant):
    rule, *words = VARIANTS[variant]
    (verdict,) = verdicts_on(f"variants.{variant}", [RULES[rule]])
    assert verdict.outcome == FAILED
    for word in words:
        assert word in verdict.message


IMPORTING = """
import importlib, json, sys
for library in ("datasets", "torch", "transformers.modeling_utils", "interpretune.adapters.core"):
    importlib.import_module(library)
from interpretune.testing.import_watch import watched_import
found = {name: watched_import(f"tests.broken_adapters.{name}:adapter", ["tests"]) for name in sys.argv[1:]}
sys.stdout.write("\\n" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def imports():
    """What each of the variants changes, imported one after the other in a process of its own."""
    names = [SOUND, *(f"variants.{name}" for name in IMPORTS)]
    run = subprocess.run(
        [sys.executable, "-c", IMPORTING, *names],
        env={**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("variant", IMPORTS)
def test_what_an_import_changes_is_told(imports, variant):
    rule, name = IMPORTS[variant]
    found = imports[f"variants.{variant}"]
    told = {"import-patches-nothing": found["replaced"], "import-changes-nothing": found["changes"]}
    assert any(name in item for item in told[rule])
    assert imports[SOUND]["changes"] == imports[SOUND]["replaced"] == []


def test_a_sound_framework_keeps_the_rules_of_loops():
    names = {rule for rule, *_ in FOUND_IN_RUNS.values() if rule.startswith(("loop", "validation", "checkpoints"))}
    verdicts = verdicts_on(SOUND_FRAMEWORK, [RULES[name] for name in RULES if name in names])
    assert [(item.rule.id, item.message) for item in verdicts if item.outcome != PASSED] == []


def test_every_bug_has_another_form():
    assert variants() == {*VARIANTS, *IMPORTS}
    assert {rule for rule, *_ in FOUND_IN_RUNS.values()} <= {rule for rule, *_ in VARIANTS.values()}
