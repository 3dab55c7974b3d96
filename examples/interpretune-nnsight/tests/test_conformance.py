"""The adapter keeps the contract: one test for each rule. Its stacks with other adapters are core's tests."""

from interpretune_nnsight.conformance import NNsightConformance


class TestNNsight(NNsightConformance):
    pass
