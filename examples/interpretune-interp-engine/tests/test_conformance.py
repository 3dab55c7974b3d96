"""The adapter keeps the contract: one test for each rule. Its stacks with other adapters are core's tests."""

from interpretune_interp_engine.conformance import InterpEngineConformance


class TestInterpEngine(InterpEngineConformance):
    pass
