"""Task metrics, with and without ``evaluate``."""

from __future__ import annotations

import importlib.machinery
import sys
import types

import pytest
import torch

import interpretune as it
from interpretune.session.evaluate_metrics import Accuracy


@pytest.fixture(params=["offline", "not installed"])
def without_hub(request, monkeypatch):
    """``evaluate`` that cannot reach its hub, or no ``evaluate``."""
    if request.param == "not installed":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        return "not installed"

    def load(*args, **kwargs):
        raise ConnectionError("Couldn't reach the hub")

    use_evaluate(monkeypatch, load)
    return "Couldn't reach the hub"


def use_evaluate(monkeypatch, load):
    module = types.ModuleType("evaluate")
    module.load = load
    module.__spec__ = importlib.machinery.ModuleSpec("evaluate", None)
    monkeypatch.setitem(sys.modules, "evaluate", module)


@pytest.mark.parametrize("task", [("super_glue", "rte"), ("super_glue", "boolq"), ("accuracy",)])
def test_accuracy_needs_no_hub(without_hub, task):
    metric = it.load_metric(*task, experiment_id="one")
    assert metric.compute(predictions=[0, 1, 1, 0], references=torch.tensor([0, 1, 0, 0])) == {"accuracy": 0.75}


def test_an_unknown_metric_says_why_and_what_there_is(without_hub):
    with pytest.raises(it.ConfigurationError) as caught:
        it.load_metric("super_glue", "cb")
    for part in ("'super_glue'", "'cb'", without_hub, "('super_glue', 'rte')", "pip install evaluate"):
        assert part in str(caught.value)


def test_evaluate_comes_first_and_gets_the_arguments(monkeypatch):
    use_evaluate(monkeypatch, lambda *args, **kwargs: (args, kwargs))
    assert it.load_metric("super_glue", "rte", experiment_id="one") == (("super_glue", "rte"), {"experiment_id": "one"})


@pytest.mark.parametrize(("predictions", "references"), [([1, 0], [1]), ([], []), ([[1, 0]], [1, 0])])
def test_accuracy_refuses_unequal_or_empty_inputs(predictions, references):
    with pytest.raises(it.DataError, match="predictions .* references .* equal, non-zero length"):
        Accuracy().compute(predictions=predictions, references=references)
