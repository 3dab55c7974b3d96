"""The adapter keeps the contract: one test for each rule."""

from interpretune.testing import AdapterConformance


class TestHello(AdapterConformance):
    adapter = "hello"
