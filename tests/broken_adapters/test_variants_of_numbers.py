"""Wrong numbers are found wherever they are: at other places, in batches of other sizes, by other ways in."""

from __future__ import annotations

import functools
import importlib
import warnings

import pytest

from interpretune.testing import RULES
from interpretune.testing.doctor import FAILED
from tests.broken_adapters.expected_of_numbers import FOUND_IN_NUMBERS, OTHER_FORMS
from tests.broken_adapters.keeping import PACKAGE, verdicts_on

MISBEHAVING = "misbehaving"


@pytest.fixture(autouse=True)
def warnings_are_no_errors():
    """A wrong adapter may well warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(("animal", "settings"), OTHER_FORMS)
def test_a_bug_elsewhere_breaks_the_same_rule(animal, settings, monkeypatch):
    module = importlib.import_module(f"{PACKAGE}.{MISBEHAVING}.{animal}")
    for name, value in settings.items():
        *owners, last = name.split(".")
        monkeypatch.setattr(functools.reduce(getattr, owners, module), last, value)
    rule = FOUND_IN_NUMBERS[animal][0]
    (verdict,) = verdicts_on(f"{MISBEHAVING}.{animal}", [RULES[rule]])
    assert verdict.outcome == FAILED, verdict.message
