"""The kit rejects every broken adapter for its own reason and for none beside, and lets a sound one pass.

All other rules are checked on every broken adapter by ``make broken-adapters``, which takes most of an hour.
"""

from __future__ import annotations

import warnings

import pytest

from interpretune.plugins.declaration import Level
from interpretune.testing import RULES
from interpretune.testing.doctor import FAILED, PASSED, SKIPPED
from interpretune.testing.rules import importing
from tests.broken_adapters.checking import check_adapter, rules_beside, verdicts_on
from tests.broken_adapters.expected import EXPECTED, FOUND, SOUND, SOUND_LATENTS, all_broken


@pytest.fixture(autouse=True)
def warnings_are_no_errors():
    """A wrong adapter may well warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(autouse=True)
def imports_are_measured_once(monkeypatch):
    """A machine that is busy makes no import slower beside that of torch, and the slow adapter is slow each time."""
    monkeypatch.setattr(importing, "TRIES", 1)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_broken_adapter_breaks_its_rule_and_none_beside(name):
    check_adapter(name, rules_beside(EXPECTED[name][0]))


def test_a_sound_adapter_keeps_every_rule():
    verdicts = verdicts_on(SOUND, RULES.values())
    assert [verdict.message for verdict in verdicts if verdict.outcome == FAILED] == []
    of_other_levels = {rule.id for rule in RULES.values() if rule.levels and Level.model not in rule.levels}
    without_truth = {
        *("latents-read-where-they-say", "latents-encode-as-trained"),
        *("latents-decode-with-their-bias", "latents-in-train-mode"),
    }
    skipped = {verdict.rule.id for verdict in verdicts if verdict.outcome == SKIPPED}
    of_operations = {"operations-run", "operations-leave-what-they-read"}
    assert skipped - {"accelerator-agrees"} == of_other_levels | without_truth | of_operations | {"suite-loads"}
    assert sum(verdict.outcome == PASSED for verdict in verdicts) > 50


def test_sound_latent_models_keep_every_rule_about_them():
    rules = [rule for rule in RULES.values() if rule.id.startswith("latent")]
    verdicts = verdicts_on(SOUND_LATENTS, rules)
    assert [(item.rule.id, item.message) for item in verdicts if item.outcome != PASSED] == []
    assert len(verdicts) > 7


def test_every_broken_adapter_is_expected():
    assert all_broken() == set(EXPECTED)
    assert len(FOUND) >= 15
