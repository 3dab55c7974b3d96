"""Wrong numbers are found wherever they are: at other places, in batches of other sizes, by other ways in."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Mapping
from typing import Any

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


FIRST = [form for i, form in enumerate(OTHER_FORMS) if form[0] not in {name for name, _ in OTHER_FORMS[:i]}]
"""One other form of each; ``make broken-adapters`` checks all of them."""


@pytest.mark.parametrize(("name", "settings"), FIRST)
def test_a_bug_elsewhere_breaks_the_same_rule(name, settings, monkeypatch):
    check_form(name, settings, monkeypatch)


def check_form(name: str, settings: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail unless a broken adapter with other settings breaks its rule."""
    module = importlib.import_module(f"{PACKAGE}.{MISBEHAVING}.{name}")
    for setting, value in settings.items():
        *owners, last = setting.split(".")
        monkeypatch.setattr(functools.reduce(getattr, owners, module), last, value)
    rule = FOUND_IN_NUMBERS[name][0]
    (verdict,) = verdicts_on(f"{MISBEHAVING}.{name}", [RULES[rule]])
    assert verdict.outcome == FAILED, verdict.message
