"""Every broken adapter breaks its own rule and no other of the kit: ``make broken-adapters``."""

from __future__ import annotations

import warnings

import pytest

from tests.broken_adapters.checking import check_adapter, rules_for
from tests.broken_adapters.expected import EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
def test_a_broken_adapter_breaks_its_rule_and_no_other(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong adapter may well warn
        check_adapter(name, rules_for(EXPECTED[name][0]))
