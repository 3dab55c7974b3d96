"""The adapter keeps the contract: one test for each rule, alone and under other frameworks and latent models."""

import importlib.util

import pytest

from interpretune.testing import AdapterConformance


class TestNNsight(AdapterConformance):
    adapter = "nnsight"


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


@needs("interpretune_lightning")
class TestNNsightUnderLightning(AdapterConformance):
    adapter = "nnsight"
    stack = ("lightning", "nnsight")


@needs("interpretune_saelens")
class TestNNsightUnderSAELens(AdapterConformance):
    adapter = "nnsight"
    stack = ("nnsight", "sae_lens")
