"""Backends of models in memory, from entry points."""

from __future__ import annotations

import importlib
import sys

import pytest

import interpretune as it
from interpretune.backends.finding import GROUP, backend_of
from interpretune.testing.tiny_models import tiny_llama, tiny_tokenizer

LIBRARY = """
    class Model:
        pass
"""
ADAPTER = """
    from interpretune.analysis import HuggingFaceBackend
    from interpretune.testing import tiny_llama

    def backend(model, tokenizer):
        return HuggingFaceBackend(tiny_llama(), tokenizer)

    def nothing(model, tokenizer):
        return None
"""


def test_the_adapter_of_a_models_library_is_asked_and_no_other(install):
    install("acme-library", acme_library=LIBRARY)
    install("acme", group=GROUP, entries={"acme_library": "acme_mod:backend"}, acme_mod=ADAPTER)
    install("other", group=GROUP, entries={"other_library": "other_mod:backend"}, other_mod=ADAPTER)
    backend_of(tiny_llama(), tiny_tokenizer())
    assert "acme_mod" not in sys.modules

    class Mine(importlib.import_module("acme_library").Model):
        pass

    assert backend_of(Mine(), tiny_tokenizer()).vocab_size > 0
    assert "other_mod" not in sys.modules


@pytest.mark.parametrize(
    ("entries", "error", "told"),
    [
        ({}, it.AnalysisError, "A Model is neither a model of transformers nor a backend"),
        ({"acme": "acme_mod:backend", "other": "acme_mod:nothing"}, it.DuplicateAdapterError, "acme and other offer"),
        ({"acme": "acme_mod:absent"}, it.AdapterImportError, "acme 1.2.3 for models of acme_library.*AttributeError"),
        ({"acme": "acme_mod:nothing"}, it.AnalysisError, "acme 1.2.3 made a NoneType for a Model"),
    ],
)
def test_a_model_without_a_backend_is_refused(install, entries, error, told):
    install("acme-library", acme_library=LIBRARY, acme_mod=ADAPTER)
    for distribution, target in entries.items():
        install(distribution, group=GROUP, entries={"acme_library": target})
    with pytest.raises(error, match=told):
        backend_of(importlib.import_module("acme_library").Model(), tiny_tokenizer())
