"""The adapters of this repository keep every rule of the kit."""

from __future__ import annotations

from interpretune.testing import AdapterConformance


class TestCore(AdapterConformance):
    adapter = "core"


class TestBridge(AdapterConformance):
    adapter = "transformer_lens"


class TestHooked(AdapterConformance):
    adapter = "transformer_lens"

    def module_settings(self):
        from interpretune_tlens import ITLensFromPretrainedNoProcessingConfig

        return {"tl_cfg": ITLensFromPretrainedNoProcessingConfig(use_bridge=False)}


class TestLightning(AdapterConformance):
    adapter = "lightning"


class TestSAELens(AdapterConformance):
    adapter = "sae_lens"
