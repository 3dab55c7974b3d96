"""The adapter keeps the contract: one test for each rule, alone, under Lightning, and under SAEs of SAELens."""

import importlib.util

import pytest

from interpretune_nnsight.conformance import NNsightConformance


class TestNNsight(NNsightConformance):
    pass


@pytest.mark.skipif(importlib.util.find_spec("interpretune_lightning") is None, reason="needs interpretune-lightning")
class TestNNsightUnderLightning(NNsightConformance):
    stack = ("lightning", "nnsight")


if importlib.util.find_spec("interpretune_saelens") is not None:
    from interpretune_saelens.conformance import SAELensConformance

    class TestSAELensOnNNsight(SAELensConformance):
        stack = ("nnsight", "sae_lens")
