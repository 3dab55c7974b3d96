"""How interpretune checks this adapter, under pytest and in ``interpretune doctor``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from interpretune.testing import AdapterConformance, ReferenceLatents
from safetensors.torch import save_file

from interpretune_adaptername.config import SavedDictionary
from interpretune_adaptername.dictionary import ABOUT, WEIGHTS


class AdapterNameConformance(AdapterConformance):
    """Inherits one check for each rule of the contract."""

    adapter = "adapter_name"

    def reference_latents(self) -> Sequence[ReferenceLatents]:
        """What the dictionary below must compute: plain weights and formulas, nothing of the adapter."""
        return [ReferenceLatents.random("layers.1.resid_post", 32, 48, seed=self.seed, centred=True)]

    def module_settings(self) -> Mapping[str, Any]:
        """A dictionary with these weights in a middle layer of the tiny model, as it is published."""
        [truth] = self.reference_latents()
        weights = {"w_enc": truth.w_enc, "b_enc": truth.b_enc, "w_dec": truth.w_dec, "b_dec": truth.b_dec}
        save_file(weights, self.folder / WEIGHTS)
        about = {"hook_point": truth.hook_point, "d_in": 32, "d_sae": 48}
        (self.folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        return {"adapter_name_cfgs": [SavedDictionary(path=self.folder)]}
