"""What the conformance kit needs to know of this adapter: for ``interpretune doctor`` and for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interpretune.testing import AdapterConformance


class LightningConformance(AdapterConformance):
    """Sessions that a Trainer runs, on the CPU."""

    adapter = "lightning"

    def module_settings(self) -> Mapping[str, Any]:
        """A Trainer in this process."""
        return {"trainer_kwargs": {"accelerator": "cpu", "devices": 1}}
