"""The adapters of this repository keep every rule of the kit; for core see the test of ``interpretune doctor``.

``huggingface`` shares all but the loading of the model with core: see the tests of stacks, and ``make kit``.
"""

from __future__ import annotations

import pytest

lightning = pytest.importorskip("interpretune_lightning.conformance")
saelens = pytest.importorskip("interpretune_saelens.conformance")
tlens = pytest.importorskip("interpretune_tlens.conformance")


class TestBridge(tlens.TransformerLensConformance):
    pass


class TestHooked(tlens.HookedTransformerConformance):
    test_import_is_cheap = None  # the adapter is that of the bridge


class TestSAELens(saelens.SAELensConformance):
    pass


class TestLightning(lightning.LightningConformance):
    pass
