"""The adapter keeps the contract: one test for each rule, alone and under other frameworks and latent models."""

import importlib.util
from pathlib import Path

import pytest

from interpretune.testing import AdapterConformance
from interpretune.testing.tiny_models import save_tiny_model


class TestNNsight(AdapterConformance):
    adapter = "nnsight"


class TestNNsightOnGpt2(AdapterConformance):
    adapter = "nnsight"

    def write_tiny_model(self, folder: Path) -> None:
        save_tiny_model(folder, "gpt2", dropout=0.1)


@pytest.mark.skipif(importlib.util.find_spec("interpretune_lightning") is None, reason="needs interpretune-lightning")
class TestNNsightUnderLightning(AdapterConformance):
    adapter = "nnsight"
    stack = ("lightning", "nnsight")
