"""Edits through interp-engine's hook manager, beside torch hooks on a plain model, and beside its own captures."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch

import interpretune as it
from interpretune.analysis import HuggingFaceBackend, LatentRows, ModelInputs, activation_name
from interpretune.testing import RandomDictionary, ablated_logits, tiny_gpt2, tiny_llama, tiny_tokenizer
from interpretune_interp_engine import InterpEngineBackend, library
from interpretune_interp_engine.backend import backend_of

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(params=[tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def model(request):
    return request.param().requires_grad_(False)


def padded(side, lengths=(9, 2, 6)):
    draw = torch.Generator().manual_seed(0)
    tokens, mask = torch.zeros(2, len(lengths), max(lengths), dtype=torch.long)
    for i, length in enumerate(lengths):
        where = slice(max(lengths) - length, None) if side == "left" else slice(0, length)
        tokens[i, where], mask[i, where] = torch.randint(4, 50, (length,), generator=draw), 1
    return ModelInputs(tokens, mask)


def bend(activations):
    return activations + 0.3 * torch.sin(3 * activations)


def hooks_of(model):
    return [(dict(item._forward_hooks), dict(item._forward_pre_hooks)) for item in model.modules()]


@pytest.mark.parametrize("side", ["left", "right"])
def test_edits_and_activations_at_every_place_are_those_of_the_plain_backend(model, side):
    backend, plain, inputs, before = (
        InterpEngineBackend(model),
        HuggingFaceBackend(model),
        padded(side),
        hooks_of(model),
    )
    names = [name for name in backend.hook_point_names() if ":" not in name]
    served = {name for name in names if backend.point_of(name) is not None}
    assert served == set(names)
    assert len(served) == 3 * 8 + 3
    places = [*names, "layers.1.attn_pattern"]
    clean = backend.run(inputs)
    torch.testing.assert_close(clean, plain.run(inputs), **CLOSE)
    for name in places:
        edit = (lambda pattern: pattern.flip(-1)) if name.endswith("pattern") else bend
        found = backend.forward(inputs, {name: edit}, inputs.answers)
        torch.testing.assert_close(found, plain.forward(inputs, {name: edit}, inputs.answers), **CLOSE)
        assert not torch.allclose(found, clean, atol=1e-3), name
    torch.testing.assert_close(
        backend.run_with_cache(inputs, names)[1], plain.run_with_cache(inputs, names)[1], **CLOSE
    )
    assert hooks_of(model) == before


def test_edits_go_through_the_hook_manager_and_in_their_order(model, monkeypatch):
    backend, inputs, seen = InterpEngineBackend(model), padded("left"), []
    import interp_engine

    backend.forward(inputs, {"layers.1.mlp_out": torch.tanh})  # what the name means is proved first
    write = interp_engine.HookManager.write

    def noted(self, module, edit, *, point):
        seen.append((type(module).__name__, point))
        return write(self, module, edit, point=point)

    monkeypatch.setattr(interp_engine.HookManager, "write", noted)
    path, _ = backend.module_and_side("layers.1.mlp_out")
    for order in ((f"{path}:out", "layers.1.mlp_out"), ("layers.1.mlp_out", f"{path}:out")):
        edits = dict(zip(order, (torch.tanh, torch.exp), strict=True))
        found = backend.forward(inputs, edits)
        torch.testing.assert_close(found, HuggingFaceBackend(model).forward(inputs, edits), **CLOSE)
    assert seen == [(type(backend.modules[path]).__name__, "output")] * 2


def test_activations_are_those_that_interp_engine_captures_by_itself():
    import interp_engine

    model, tokens = tiny_llama(), torch.tensor([[5, 7, 11, 13]])
    engine = interp_engine.EagerModel("tiny", hf_model=model, tokenizer=tiny_tokenizer())
    points = [interp_engine.Address(name, 1) for name in ("resid_pre", "z", "resid_mid", "mlp_act", "resid_post")]
    names = [f"layers.1.{name}" for name in ("resid_pre", "attn_z", "resid_mid", "mlp_act", "resid_post")]
    backend = backend_of(engine, tiny_tokenizer())
    assert [backend.point_of(name) for name in names] == points
    captured = interp_engine.capture(engine, tokens, points)
    found = backend.run_with_cache(ModelInputs(tokens, torch.ones_like(tokens)), names)[1]
    for name, point in zip(names, points, strict=True):
        torch.testing.assert_close(found[name], captured[point], **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_replayed_ablations_are_those_of_the_slow_reference(model, side):
    backend, inputs = InterpEngineBackend(model), padded(side)
    models = [RandomDictionary(f"layers.{i}.{place}", 32, seed=i) for i, place in ((0, "mlp_out"), (1, "resid_mid"))]
    name = activation_name(models[0])
    prefill = backend.prefill(inputs, models)
    pairs = (prefill.latents[name] > 0).nonzero()
    found = backend.ablate(prefill, LatentRows.single(name, pairs))
    assert len(pairs) > len(inputs)
    for (row, latent), logits in zip(pairs.tolist(), found, strict=True):
        tokens = inputs.tokens[row][inputs.attention_mask[row].bool()]
        expected = ablated_logits(model, models, tokens, (), [{name: {latent: 0.0}}])
        torch.testing.assert_close(logits, expected[0], atol=1e-4, rtol=1e-4)
    assert [check.passed for check in backend.replays.checks()] == [True]


def test_a_backend_leaves_modes_and_what_is_trained():
    model = tiny_llama().train()
    model.model.layers[1].eval()
    model.lm_head.requires_grad_(False)
    before = [item.training for item in model.modules()], [item.requires_grad for item in model.parameters()]
    tokenizer = tiny_tokenizer()
    padding = tokenizer.pad_token = None
    InterpEngineBackend(model, tokenizer)
    assert before == ([item.training for item in model.modules()], [item.requires_grad for item in model.parameters()])
    assert tokenizer.pad_token is padding


def test_models_of_other_kinds_are_refused():
    with pytest.raises(it.ModelLoadError, match='holds no model of transformers.*backend="eager"'):
        backend_of(torch.nn.Linear(2, 2), None)
    lone = tiny_llama()
    del lone.model.layers
    with pytest.raises(it.ModelLoadError, match="cannot read the structure of LlamaForCausalLM"):
        InterpEngineBackend(lone)


@pytest.mark.parametrize(("installed", "said"), [(None, "interp-engine is not installed"), ("2.0.0", "2.0.0 is inst")])
def test_a_missing_or_unsupported_library_is_refused(installed, said, monkeypatch):
    def version(name):
        if installed is None:
            raise PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(library, "version", version)
    with pytest.raises(it.ModelLoadError, match=f'{said}.*pip install "interp-engine>=1.14,<1.15"'):
        InterpEngineBackend(tiny_llama())
