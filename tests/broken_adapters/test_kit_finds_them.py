"""The kit rejects every broken adapter for its own reason and for none beside, and lets a sound one pass.

All other rules are checked on every broken adapter, and all on the sound one, by ``make broken-adapters``, which takes
most of an hour.
"""

from __future__ import annotations

import warnings

import pytest

from interpretune.testing import RULES
from interpretune.testing.doctor import PASSED
from tests.broken_adapters.checking import (
    COSTLY,
    IMPORT_RULES,
    SLOW,
    check_adapter,
    check_sound,
    rules_beside,
    verdicts_on,
)
from tests.broken_adapters.expected import EXPECTED, FOUND, IMPORTED_TOGETHER, SOUND_LATENTS, all_broken


@pytest.fixture(autouse=True)
def warnings_are_no_errors():
    """A wrong adapter may well warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in IMPORTED_TOGETHER])
def test_a_broken_adapter_breaks_its_rule_and_none_beside(name):
    check_adapter(name, rules_beside(EXPECTED[name][0]))


def test_a_sound_adapter_keeps_the_rules():
    check_sound([rule for rule in RULES.values() if rule.id not in (*IMPORT_RULES, *SLOW, *COSTLY)])


def test_sound_latent_models_keep_every_rule_about_them():
    rules = [rule for rule in RULES.values() if rule.id.startswith("latent")]
    verdicts = verdicts_on(SOUND_LATENTS, rules)
    assert [(item.rule.id, item.message) for item in verdicts if item.outcome != PASSED] == []
    assert len(verdicts) > 7


def test_every_broken_adapter_is_expected():
    assert all_broken() == set(EXPECTED)
    assert len(FOUND) >= 15
