"""The adapters of this repository keep every rule of the kit; for core see the test of ``interpretune doctor``."""

from __future__ import annotations

import pytest

from interpretune.testing import AdapterConformance

lightning = pytest.importorskip("interpretune_lightning.conformance")
saelens = pytest.importorskip("interpretune_saelens.conformance")
tlens = pytest.importorskip("interpretune_tlens.conformance")


class TestBridge(tlens.TransformerLensConformance):
    pass


class TestHooked(tlens.HookedTransformerConformance):
    pass


class TestSAELens(saelens.SAELensConformance):
    pass


class TestLightning(lightning.LightningConformance):
    pass


class TestHuggingFace(AdapterConformance):
    adapter = "huggingface"
