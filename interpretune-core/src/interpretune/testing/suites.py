"""Finds what authors of adapters say of them to the kit."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from interpretune.testing.conformance import AdapterConformance

CONFORMANCE_GROUP = "interpretune.conformance"
"""Entry points of this group give, under the name of an adapter, its subclass of ``AdapterConformance``."""


def registered_suite(adapter: str) -> Any:
    """What is registered for an adapter, loaded; None where nothing is."""
    for entry_point in importlib.metadata.entry_points(group=CONFORMANCE_GROUP):
        if entry_point.name == adapter:
            return entry_point.load()
    return None


def suite_of(adapter: str) -> AdapterConformance:
    """The suite of an adapter: its author's, where it is one, else one with the defaults."""
    try:
        found = registered_suite(adapter)
    except (Exception, SystemExit):  # noqa: BLE001 - the rule suite-loads reports it
        found = None
    if isinstance(found, type) and issubclass(found, AdapterConformance) and found.adapter == adapter:
        return found()
    return type("DefaultSuite", (AdapterConformance,), {"adapter": adapter})()
