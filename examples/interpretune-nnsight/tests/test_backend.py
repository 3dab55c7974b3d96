"""What nnsight does in the place of torch hooks, beside torch hooks on a plain model, one unpadded row at a time."""

import contextvars
import gc
import warnings
import weakref

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from interpretune import HookPointError
from interpretune.analysis import (
    Add,
    HuggingFaceBackend,
    LatentRows,
    ModelInputs,
    Scale,
    activation_name,
    interventions_in_place,
    run_with_interventions,
)
from interpretune.testing import (
    RandomDictionary,
    ablated_logits,
    activations_of,
    logits_of,
    spliced_run,
    tiny_gpt2,
    tiny_llama,
)
from interpretune_nnsight import NNsightBackend

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
WIDTH = 32
LENGTHS = (9, 2, 6)


def tiny_gemma3():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=60,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
    )
    return Gemma3ForCausalLM(config).eval()


MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]().requires_grad_(False)


def rows_of(lengths=LENGTHS):
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(4, 50, (length,), generator=draw) for length in lengths]


def padded(rows, side):
    width = max(map(len, rows))
    tokens, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, where], mask[i, where] = row, 1
    return ModelInputs(tokens, mask)


def what_modules_hold(model):
    """The attributes of all modules, and everything that hooks can be put into."""
    return [{key: dict(v) if isinstance(v, dict) else v for key, v in vars(item).items()} for item in model.modules()]


def bend(activations):
    return activations + 0.3 * torch.sin(3 * activations)


BATCHES = [(LENGTHS, "left"), (LENGTHS, "right"), ((5,), "left")]


@pytest.mark.parametrize(("lengths", "side"), BATCHES)
def test_edits_and_activations_at_every_place_are_those_of_torch_hooks(model, lengths, side):
    backend, rows = NNsightBackend(model), rows_of(lengths)
    inputs, before = padded(rows, side), what_modules_hold(model)
    places = [name for name in backend.hook_point_names() if ":" not in name]
    assert {"embed", "layers.0.resid_mid", "layers.2.attn_z", "final_norm", "logits"} <= set(places)
    for name in places:
        found = backend.forward(inputs, {name: bend}, inputs.answers)
        expected = torch.stack([logits_of(model, row, [(name, bend)])[-1] for row in rows])
        torch.testing.assert_close(found, expected, **CLOSE)
        assert not torch.allclose(found, backend.run(inputs), atol=1e-3), name
    _, cache = backend.run_with_cache(inputs, places)
    for i, row in enumerate(rows):
        for name, value in activations_of(model, row, places).items():
            torch.testing.assert_close(cache[name][i][inputs.attention_mask[i].bool()], value, **CLOSE)
    assert what_modules_hold(model) == before


@pytest.mark.parametrize(("lengths", "side"), BATCHES)
def test_splices_gradients_and_ablations_are_those_of_the_slow_reference(model, lengths, side):
    backend, rows = NNsightBackend(model), rows_of(lengths)
    inputs, before = padded(rows, side), what_modules_hold(model)
    models = [RandomDictionary(f"layers.{i}.{place}", WIDTH, seed=i) for i, place in ((0, "mlp_out"), (1, "resid_mid"))]
    low, high = map(activation_name, models)

    def objective(logits):
        return (logits[..., 5] - logits[..., 6]).sum()

    run, gradients = backend.gradients(inputs, models, objective, [low, high])
    prefill = backend.prefill(inputs, models)
    pairs = (prefill.latents[low] > 0).nonzero()
    ablated = backend.ablate(prefill, LatentRows.single(low, pairs))
    assert len(pairs) > len(rows)
    for i, row in enumerate(rows):
        logits, latents, slopes = spliced_run(model, models, row, (), objective)
        torch.testing.assert_close(run.answer_logits[i], logits, **CLOSE)
        real = inputs.attention_mask[i].bool()
        for name in (low, high):
            torch.testing.assert_close(run.activations[name][i][real], latents[name], **CLOSE)
            torch.testing.assert_close(gradients[name][i][real], slopes[name], **CLOSE)
    for (example, latent), found in zip(pairs.tolist(), ablated, strict=True):
        expected = ablated_logits(model, models, rows[example], (), [{low: {latent: 0.0}}])[0]
        torch.testing.assert_close(found, expected, **CLOSE)
    assert [check.passed for check in backend.replays.checks()] == [True]
    assert what_modules_hold(model) == before


def test_every_step_of_a_generation_is_steered(model):
    backend, row = NNsightBackend(model), rows_of((6,))[0]
    inputs = padded([row, row[:4]], "left")
    steering = torch.linspace(-2, 2, WIDTH)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with interventions_in_place(backend, inputs, [Add(at="layers.1.resid_post", value=steering)]):
        found = model.generate(input_ids=inputs.tokens, attention_mask=inputs.attention_mask, **options)
    for i, start in enumerate((row, row[:4])):
        for _ in range(4):
            logits = logits_of(model, start, [("layers.1.resid_post", lambda x: x + steering)])
            start = torch.cat([start, logits[-1:].argmax(-1)])
        assert found[i][-len(start) :].tolist() == start.tolist()


def test_gemma3_with_norms_after_its_sublayers_is_edited_as_with_torch_hooks():
    model = tiny_gemma3()
    inputs = padded(rows_of(), "left")
    found, expected = NNsightBackend(model), HuggingFaceBackend(model)
    for name in (name for name in expected.hook_point_names() if ":" not in name):
        torch.testing.assert_close(found.forward(inputs, {name: bend}), expected.forward(inputs, {name: bend}))


def test_an_error_of_an_edit_reaches_the_caller_as_itself_and_leaves_the_model_usable(model):
    backend, inputs = NNsightBackend(model), padded(rows_of(), "left")
    clean, before = backend.run(inputs), what_modules_hold(model)

    class OwnError(Exception):
        pass

    def fails(activations):
        raise OwnError

    with pytest.raises(OwnError):
        backend.forward(inputs, {"layers.0.resid_post": bend, "layers.1.attn_z": fails, "logits": bend})
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        backend.forward(inputs, {"layers.1.mlp_in": lambda x: x @ torch.zeros(3, 3)})
    assert what_modules_hold(model) == before
    assert torch.equal(backend.run(inputs), clean)
    seen = backend.capture(inputs, ["layers.1.resid_pre", "layers.0.attn_out"])  # ends the forward by an error, too
    assert set(seen) == {"layers.1.resid_pre", "layers.0.attn_out"}
    assert torch.equal(backend.run(inputs), clean)


def test_an_edit_that_no_forward_reaches_is_an_error(model):
    model.unused = torch.nn.Linear(2, 2)
    backend = NNsightBackend(model)
    with pytest.raises(HookPointError, match="never ran the hook points"):
        backend.forward(padded(rows_of(), "left"), {"unused:out": bend, "embed": bend})


def test_blocks_of_edits_nest_and_the_outer_edits_come_first(model):
    """Torch runs hooks in the order in which they were registered."""
    inputs = padded(rows_of(), "left")
    results = []
    for backend in (HuggingFaceBackend(model), NNsightBackend(model)):
        outer = {"layers.1.resid_pre": bend, "layers.2.mlp_out": bend}
        inner = {"layers.1.resid_pre": torch.tanh, "layers.1.resid_post": torch.tanh}
        with backend.hooked(outer):
            results.append([backend.forward(inputs, inner), backend.forward(inputs, {})])
        results[-1].append(backend.forward(inputs, {}))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    nested, only_outer, clean = results[1]
    assert not torch.allclose(nested, only_outer)
    assert not torch.allclose(only_outer, clean)


def test_a_module_that_runs_twice_in_a_forward_is_edited_twice():
    model = tiny_llama()
    model.model.layers[2].mlp = model.model.layers[1].mlp
    inputs = padded(rows_of(), "left")
    place = {"model.layers.1.mlp:out": bend}
    expected = HuggingFaceBackend(model).forward(inputs, place)
    torch.testing.assert_close(NNsightBackend(model).forward(inputs, place), expected)


def test_edits_see_the_context_variables_and_the_grad_mode_of_the_forward(model):
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    def note(activations):
        seen.append((variable.get(), torch.is_grad_enabled()))
        return activations

    backend, inputs = NNsightBackend(model), padded(rows_of(), "left")
    variable.set("set")
    with torch.no_grad():
        backend.forward(inputs, {"layers.1.mlp_out": note})
    with torch.enable_grad():
        backend.forward(inputs, {"layers.1.mlp_out": note})
    assert seen == [("set", False), ("set", True)]


def test_wrappers_around_the_model_may_begin_its_forward(model):
    """Adapters of peft hand ``generate`` on to the model that they wrap, and ``forward`` they do not."""
    peft = pytest.importorskip("peft")
    layers = ["q_proj"] if hasattr(model, "model") else ["c_attn"]
    config = peft.LoraConfig(target_modules=layers, fan_in_fan_out=layers == ["c_attn"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about an attribute that peft reads
        wrapped = peft.get_peft_model(model, config).eval()
    inputs = padded(rows_of((5,)), "left")
    found, expected = [], []
    for backend, kept in ((NNsightBackend(wrapped), found), (HuggingFaceBackend(wrapped), expected)):
        names = [name for name in backend.hook_point_names() if name.endswith(".1.mlp:out")]
        assert len(names) == 1
        kept.append(backend.forward(inputs, {names[0]: bend}))
        with backend.hooked({names[0]: bend}):
            options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            out = wrapped.generate(
                **{"input_ids": inputs.tokens, "attention_mask": inputs.attention_mask, **options},
                output_logits=True,
                return_dict_in_generate=True,
            )
        kept.append(torch.stack(out.logits))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_model_that_its_user_has_wrapped_can_be_edited_and_traced(model):
    backend, inputs = NNsightBackend(model), padded(rows_of((5,)), "left")
    place = "layers.1.mlp_out"
    plain = backend.run_with_cache(inputs, [place])[1][place]
    edited = backend.forward(inputs, {"layers.0.resid_post": bend})
    import nnsight

    tree = nnsight.NNsight(model)
    before = what_modules_hold(model)
    assert torch.equal(backend.forward(inputs, {"layers.0.resid_post": bend}), edited)
    assert what_modules_hold(model) == before
    mlp = tree.get(backend.module_and_side(place)[0])
    with tree.trace(input_ids=inputs.tokens, attention_mask=inputs.attention_mask):
        found = nnsight.save(mlp.output)
    torch.testing.assert_close(found, plain)


def test_a_model_is_freed_when_nobody_holds_it():
    model = tiny_llama()
    backend = NNsightBackend(model)
    run_with_interventions(backend, padded(rows_of(), "left"), [Scale(at="layers.1.resid_mid", factor=0.5)])
    gone = weakref.ref(model)
    del model, backend
    gc.collect()
    assert gone() is None


@torch.no_grad()
def test_the_last_stream_gives_the_models_logits(model):
    backend = NNsightBackend(model)
    tokens = torch.arange(3, 9).reshape(2, 3)
    own, seen = backend.run_with_cache(ModelInputs(tokens, torch.ones_like(tokens)), ["layers.2.resid_post"])
    stream = seen["layers.2.resid_post"][:, -1]
    torch.testing.assert_close(backend.unembed(backend.final_norm(stream)), own, **CLOSE)


@torch.no_grad()
def test_attention_patterns_are_edited_beside_what_nnsight_edits(model):
    inputs = padded(rows_of(), "left")
    edits = {"layers.1.attn_pattern": lambda pattern: pattern.flip(-1), "layers.2.mlp_out": bend}
    found, plain = (kind(model).forward(inputs, edits, inputs.answers) for kind in (NNsightBackend, HuggingFaceBackend))
    torch.testing.assert_close(found, plain, **CLOSE)
    assert not torch.allclose(found, NNsightBackend(model).run(inputs), atol=1e-3)


@pytest.mark.parametrize("way", [torch.compile, lambda model, **options: model.compile(**options) or model])
def test_compiled_models_run_eagerly(monkeypatch, way):
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)

    def not_compiled(graph, inputs):
        raise AssertionError("compiled code was asked for")

    inputs = ModelInputs(torch.tensor([[5, 7, 11]]), torch.ones(1, 3, dtype=torch.long))
    off = [Scale(at="layers.0.mlp_out", factor=0.0)]
    expected = run_with_interventions(NNsightBackend(tiny_llama()), inputs, off)
    compiled = way(tiny_llama(), backend=not_compiled)
    assert torch.equal(run_with_interventions(NNsightBackend(compiled), inputs, off), expected)
