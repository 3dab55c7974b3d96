"""The suite that authors of adapters inherit: one test for each rule."""

from __future__ import annotations

from collections.abc import Callable

from interpretune.testing import rules
from interpretune.testing.rule import Rule
from interpretune.testing.suite import Suite, registered_suite


class AdapterConformance(Suite):
    """Checks one adapter against every rule of the contract.

    ::

        from interpretune.testing import AdapterConformance

        class TestMyAdapter(AdapterConformance):
            adapter = "my_adapter"

    pytest then runs one test for each rule. ``interpretune doctor`` checks the same rules without pytest; it finds the
    class where it is registered as an entry point of the group ``interpretune.conformance``.
    """


def _test_of(rule: Rule) -> Callable[..., None]:
    def test(self: AdapterConformance, check_rule: Callable[[Rule], None]) -> None:
        check_rule(rule)

    test.__name__ = rule.test_name
    test.__qualname__ = f"{AdapterConformance.__name__}.{rule.test_name}"
    test.__doc__ = rule.about
    return test


for _rule in rules.RULES.values():
    setattr(AdapterConformance, _rule.test_name, _test_of(_rule))


def suite_of(adapter: str) -> AdapterConformance:
    """The suite of an adapter: its author's, where it is one, else one with the defaults."""
    try:
        found = registered_suite(adapter)
    except (Exception, SystemExit):  # noqa: BLE001 - the rule suite-loads reports it
        found = None
    if isinstance(found, type) and issubclass(found, AdapterConformance) and found.adapter == adapter:
        return found()
    return type("DefaultSuite", (AdapterConformance,), {"adapter": adapter})()
