"""The adapter keeps the contract: one test for each rule, alone and under SAEs of SAELens."""

import importlib.util

from interpretune_nnsight.conformance import NNsightConformance


class TestNNsight(NNsightConformance):
    pass


if importlib.util.find_spec("interpretune_saelens") is not None:
    from interpretune_saelens import SAELensConformance

    class TestSAELensOnNNsight(SAELensConformance):
        stack = ("nnsight", "sae_lens")
