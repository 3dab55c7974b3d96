"""How interpretune checks this adapter, under pytest and in ``interpretune doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interpretune.testing import AdapterConformance

from interpretune_adaptername.config import NewDictionary


class AdapterNameConformance(AdapterConformance):
    """Inherits one check for each rule of the contract."""

    adapter = "adapter_name"

    def module_settings(self) -> Mapping[str, Any]:
        """A dictionary in a middle layer of the tiny model."""
        return {"adapter_name_cfgs": [NewDictionary(hook_point="layers.1.resid_post", d_sae=48)]}
