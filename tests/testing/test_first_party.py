"""The adapters of this repository keep every rule of the kit."""

from __future__ import annotations

from interpretune.testing import AdapterConformance


class TestCore(AdapterConformance):
    adapter = "core"
