"""The model's own last norm and unembedding, of vectors: beside its modules, and beside its own logits."""

from __future__ import annotations

import pytest
import torch

from interpretune.activations.hook_names import in_layer
from interpretune.backends.unembedding import UnembeddingModel
from tests.tiny_architectures import BLOCKS, WIDTH, backend_of, batch_of, make_model

LENGTHS = (9, 2, 6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "granite", "cohere", "opt", "neox"])
@torch.no_grad()
def test_the_last_stream_gives_the_models_logits(kind):
    backend, inputs = backend_of(make_model(kind)), batch_of(LENGTHS, "left")
    own, seen = backend.run_with_cache(inputs, [in_layer(BLOCKS - 1, "resid_post"), "final_norm"])
    stream, normed = (inputs.answers.of(values) for values in seen.values())
    for way in (backend, Plainly(backend)):
        torch.testing.assert_close(way.final_norm(stream), normed, rtol=0, atol=1e-12)
        torch.testing.assert_close(way.unembed(way.final_norm(stream)), own, rtol=0, atol=1e-12)


class Plainly:
    """A backend that runs the blocks too, as one does that cannot leave them out."""

    def __init__(self, backend):
        self._backend = backend

    def __getattr__(self, name):
        method = vars(UnembeddingModel).get(name)
        return method.__get__(self) if callable(method) else getattr(self._backend, name)


@torch.no_grad()
def test_any_vectors_pass_the_models_modules():
    model = make_model("gemma2")
    backend, vectors = backend_of(model), torch.randn(5, WIDTH, dtype=torch.float64)
    normed = backend.final_norm(vectors)
    assert torch.equal(normed, model.model.norm(vectors))
    raw = model.lm_head(normed)
    assert torch.equal(backend.unembed(normed, before_cap=True), raw)
    torch.testing.assert_close(backend.unembed(normed), 30 * (raw / 30).tanh(), rtol=0, atol=1e-12)
    assert (raw - backend.unembed(normed)).abs().max() > 1e-3
