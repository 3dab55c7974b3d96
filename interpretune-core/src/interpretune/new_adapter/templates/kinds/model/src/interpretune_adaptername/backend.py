"""The backend: how analyses reach into the model."""

from __future__ import annotations

from typing import Any

from interpretune.analysis import HuggingFaceBackend

from interpretune_adaptername.model import AdapterNameModel


class AdapterNameBackend(HuggingFaceBackend):
    """Core's backend of torch forward hooks, until your library has a better one.

    What a backend of its own must supply, by deriving from ``interpretune.analysis.AnalysisBackend``:

    * ``model`` and ``vocab_size``;
    * ``hook_point_names``: the points of the model at which activations can be read and changed;
    * ``hooked``: a context in which an edit is applied at each of some of them, and none is left afterwards;
    * ``run_model``: logits of a batch, with its mask;
    * ``special_token_ids``: tokens that some latent models leave as they are.

    Splicing, gradients, ablations and interventions are written on top of these. ``create_replay`` makes ablations
    cheap, where single tokens can be run again over kept keys and values. ``capabilities`` names what is offered; take
    out what cannot be.
    """


def backend_of_model(model: AdapterNameModel, tokenizer: Any) -> AdapterNameBackend:
    """The backend of a model, with its tokenizer or None; ``interpretune.effects`` finds it by ``pyproject.toml``."""
    return AdapterNameBackend(model.hf_model, tokenizer)
