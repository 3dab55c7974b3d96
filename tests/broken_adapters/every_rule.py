"""Every broken adapter breaks its own rule and no other of the kit, the sound one none: ``make broken-adapters``.

So do all other forms of their bugs, of which ``make test`` checks one for each rule.
"""

from __future__ import annotations

import warnings

import pytest

from interpretune.testing import RULES
from tests.broken_adapters.checking import check_adapter, check_sound, rules_for
from tests.broken_adapters.expected import EXPECTED
from tests.broken_adapters.expected_of_numbers import OTHER_FORMS
from tests.broken_adapters.expected_of_runs import VARIANTS
from tests.broken_adapters.test_variants import check_variant
from tests.broken_adapters.test_variants_of_numbers import check_form


@pytest.mark.parametrize("name", EXPECTED)
def test_a_broken_adapter_breaks_its_rule_and_no_other(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong adapter may well warn
        check_adapter(name, rules_for(EXPECTED[name][0]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_form_of_a_bug_breaks_its_rule(variant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_variant(variant)


@pytest.mark.parametrize(("name", "settings"), OTHER_FORMS)
def test_a_bug_elsewhere_breaks_the_same_rule(name, settings, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_form(name, settings, monkeypatch)


def test_a_sound_adapter_keeps_every_rule():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_sound(list(RULES.values()))
