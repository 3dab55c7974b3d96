"""Wrong numbers are found wherever they are: at other places, in batches of other sizes, by other ways in."""

from __future__ import annotations

import functools
import importlib
import warnings

import pytest

from interpretune.testing import RULES
from interpretune.testing.doctor import FAILED
from tests.broken_adapters.checking import PACKAGE, verdicts_on
from tests.broken_adapters.expected_of_numbers import FOUND_IN_NUMBERS, OTHER_FORMS

MISBEHAVING = "misbehaving"


@pytest.fixture(autouse=True)
def warnings_are_no_errors():
    """A wrong adapter may well warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(("name", "settings"), OTHER_FORMS)
def test_a_bug_elsewhere_breaks_the_same_rule(name, settings, monkeypatch):
    module = importlib.import_module(f"{PACKAGE}.{MISBEHAVING}.{name}")
    for setting, value in settings.items():
        *owners, last = setting.split(".")
        monkeypatch.setattr(functools.reduce(getattr, owners, module), last, value)
    rule = FOUND_IN_NUMBERS[name][0]
    (verdict,) = verdicts_on(f"{MISBEHAVING}.{name}", [RULES[rule]])
    assert verdict.outcome == FAILED, verdict.message
