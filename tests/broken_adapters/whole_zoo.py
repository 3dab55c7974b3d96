"""Every animal of the zoo breaks its own rule and no other of the kit: ``make zoo``."""

from __future__ import annotations

import warnings

import pytest

from tests.broken_adapters.expected import EXPECTED
from tests.broken_adapters.keeping import check_animal, rules_for


@pytest.mark.parametrize("animal", EXPECTED)
def test_an_animal_breaks_its_rule_and_no_other(animal):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong adapter may well warn
        check_animal(animal, rules_for(EXPECTED[animal][0]))
