"""What the conformance kit needs to know of this adapter: for ``interpretune doctor`` and for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interpretune.testing import AdapterConformance


class TensorBoardConformance(AdapterConformance):
    """Sessions that write event files beside what the kit writes."""

    adapter = "tensorboard"

    def module_settings(self) -> Mapping[str, Any]:
        """A log folder that the kit removes."""
        return {"tensorboard_dir": self.folder / "logs"}
