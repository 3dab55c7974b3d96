"""Hook point names: one for each place of a decoder, the same place in every backend, aliases included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

import interpretune as it
from interpretune.activations.edits import at_home, edited_inputs, edited_output, in_place
from interpretune.activations.hook_names import aliases, canonical, canonical_names, in_layer, split_layer
from interpretune.analysis import HuggingFaceBackend, ModelInputs
from tests.sessions import STACKS, padded, unpadded_rows
from tests.tiny_architectures import BLOCKS, make_model
from tests.tiny_latents import RandomDictionary

SessionOf = Callable[..., it.ITSession]
MODELS = ("gpt2", "llama")
LAYERS = 3
NAMES = [name for name, _ in canonical_names(LAYERS)]
PLACES_OF_BLOCKS = {"resid_pre", "attn_z", "attn_out", "resid_mid", "mlp_in", "mlp_act", "mlp_out", "resid_post"}


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("hook_embed", "embed"),
        ("blocks.0.hook_resid_pre", "layers.0.resid_pre"),
        ("blocks.12.attn.hook_z", "layers.12.attn_z"),
        ("blocks.3.hook_attn_out", "layers.3.attn_out"),
        ("blocks.3.hook_resid_mid", "layers.3.resid_mid"),
        ("blocks.3.mlp.hook_in", "layers.3.mlp_in"),
        ("blocks.3.mlp.hook_post", "layers.3.mlp_act"),
        ("blocks.3.mlp.out.hook_in", "layers.3.mlp_act"),
        ("blocks.3.hook_mlp_out", "layers.3.mlp_out"),
        ("blocks.3.hook_resid_post", "layers.3.resid_post"),
        ("ln_final.hook_out", "final_norm"),
        ("unembed.hook_out", "logits"),
        ("blocks.3.ln2.hook_normalized", "blocks.3.ln2.hook_normalized"),  # before the norm's gain: another place
        ("model.layers.3:in", "model.layers.3:in"),
    ],
)
def test_aliases_have_a_canonical_name_and_other_names_stay(alias: str, name: str) -> None:
    assert canonical(alias) == name
    assert canonical(name) == name
    assert alias == name or alias in set(aliases(name))


def test_layer_and_place_of_a_name() -> None:
    assert split_layer("blocks.7.hook_mlp_out") == split_layer("layers.7.mlp_out") == (7, "mlp_out")
    assert split_layer("embed") is None
    assert split_layer("model.layers.3:in") is None


def inputs_of(session: it.ITSession, side: str) -> ModelInputs:
    rows = [tokens for tokens, _ in unpadded_rows(session)[:3]]
    return ModelInputs.from_batch(padded(rows, side, 0))


def plain_hooks(model: Any, kind: str) -> dict[str, tuple[torch.nn.Module, str]]:
    """The places of a tiny GPT-2 or Llama, written down by hand: module and side."""
    trunk = model.transformer if kind == "gpt2" else model.model
    blocks = trunk.h if kind == "gpt2" else trunk.layers
    places = {
        "embed": (trunk.wte if kind == "gpt2" else trunk.embed_tokens, "out"),
        "final_norm": (trunk.ln_f if kind == "gpt2" else trunk.norm, "out"),
        "logits": (model.lm_head, "out"),
    }
    for i, block in enumerate(blocks):
        attention = block.attn if kind == "gpt2" else block.self_attn
        places |= {
            in_layer(i, "resid_pre"): (block, "in"),
            in_layer(i, "attn_z"): (attention.c_proj if kind == "gpt2" else attention.o_proj, "in"),
            in_layer(i, "attn_out"): (attention, "out"),
            in_layer(i, "resid_mid"): (block.ln_2 if kind == "gpt2" else block.post_attention_layernorm, "in"),
            in_layer(i, "mlp_in"): (block.mlp, "in"),
            in_layer(i, "mlp_act"): (block.mlp.c_proj if kind == "gpt2" else block.mlp.down_proj, "in"),
            in_layer(i, "mlp_out"): (block.mlp, "out"),
            in_layer(i, "resid_post"): (block, "out"),
        }
    return places


def plain_activations(model: Any, kind: str, tokens: Tensor) -> dict[str, Tensor]:
    """What stands at each place for one unpadded row, ``[pos, ...]``, by torch hooks of the test."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, (module, side) in plain_hooks(model, kind).items():

        def note(_: Any, args: Any, kwargs: Any, output: Any = None, *, name: str = name, side: str = side) -> None:
            value = output if side == "out" else args[0] if args else kwargs["hidden_states"]
            seen[name] = (value[0] if isinstance(value, tuple) else value)[0].detach().clone()

        handles.append(
            module.register_forward_hook(note, with_kwargs=True)
            if side == "out"
            else module.register_forward_pre_hook(note, with_kwargs=True)
        )
    with torch.no_grad():
        model(tokens.unsqueeze(0))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("stack", "kind", "side"),
    [(stack, kind, ("left", "right")[(i + j) % 2]) for i, stack in enumerate(STACKS) for j, kind in enumerate(MODELS)],
)
def test_every_name_is_the_same_place_in_every_backend(session_of: SessionOf, stack: str, kind: str, side: str) -> None:
    from tests.sessions import plain_model

    session = session_of(kind, stack, side)
    backend, inputs = session.module.backend, inputs_of(session, side)
    model = plain_model(kind)
    assert set(NAMES) <= set(backend.hook_point_names())
    _, cache = backend.run_with_cache(inputs, NAMES)
    for row, (tokens, _) in enumerate(unpadded_rows(session)[:3]):
        expected = plain_activations(model, kind, tokens)
        for name in NAMES:
            found = cache[name][row][inputs.attention_mask[row].bool()]
            torch.testing.assert_close(
                found, expected[name], rtol=0, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
            )


@pytest.mark.parametrize("stack", STACKS)
def test_an_alias_gives_the_same_shape_and_values(session_of: SessionOf, stack: str) -> None:
    session = session_of("llama", stack, "left")
    backend, inputs = session.module.backend, inputs_of(session, "left")
    for name in NAMES:
        (alias, *_) = aliases(name)
        _, cache = backend.run_with_cache(inputs, [name, alias])
        assert cache[name].ndim == 3
        assert torch.equal(cache[name], cache[alias])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("stack", STACKS)
def test_an_edit_between_attention_and_mlp_goes_on_in_the_residual_stream(
    session_of: SessionOf, stack: str, kind: str
) -> None:
    session = session_of(kind, stack, "left")
    backend, inputs = session.module.backend, inputs_of(session, "left")
    vector = torch.linspace(-3, 3, 32)
    for name in ("layers.1.resid_mid", "blocks.1.hook_resid_mid"):
        changed = backend.forward(inputs, {name: lambda x: x + vector}, inputs.answers)
        by_attention = backend.forward(inputs, {"layers.1.attn_out": lambda x: x + vector}, inputs.answers)
        assert (changed - backend.run(inputs)).abs().max() > 0.1
        torch.testing.assert_close(changed, by_attention, rtol=0, atol=1e-4)


@pytest.mark.parametrize("stack", STACKS)
def test_gradients_flow_through_an_edit_between_attention_and_mlp(session_of: SessionOf, stack: str) -> None:
    session = session_of("llama", stack, "left")
    backend, inputs = session.module.backend, inputs_of(session, "left")
    grads = []
    for name in ("layers.1.resid_mid", "layers.1.attn_out"):
        added = torch.zeros(32, requires_grad=True)
        logits = backend.forward(inputs, {name: lambda x, added=added: x * 1.0 + added}, inputs.answers)
        grads.append(torch.autograd.grad(logits[:, 5].sum(), added)[0])
    assert grads[0].abs().max() > 1e-2
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("stack", STACKS)
def test_two_names_of_one_place_are_edited_in_turn(session_of: SessionOf, stack: str) -> None:
    session = session_of("gpt2", stack, "left")
    backend, inputs = session.module.backend, inputs_of(session, "left")
    both = backend.forward(
        inputs, {"layers.1.resid_post": lambda x: x + 1.0, "blocks.1.hook_resid_post": lambda x: x * 2.0}
    )
    one = backend.forward(inputs, {"layers.1.resid_post": lambda x: (x + 1.0) * 2.0})
    torch.testing.assert_close(both, one)
    assert (both - backend.forward(inputs, {})).abs().max() > 0.1


@pytest.mark.parametrize("stack", STACKS)
def test_logits_can_be_edited_and_read_at_all_positions(session_of: SessionOf, stack: str) -> None:
    session = session_of("llama", stack, "left")
    backend, inputs = session.module.backend, inputs_of(session, "left")
    clean, cache = backend.run_with_cache(inputs, ["logits"])
    assert cache["logits"].shape[1] == inputs.tokens.shape[1]
    torch.testing.assert_close(inputs.answers.of(cache["logits"]), clean)
    torch.testing.assert_close(backend.forward(inputs, {"logits": torch.neg}, inputs.answers), -clean)


@pytest.mark.parametrize("stack", STACKS)
def test_latent_models_by_either_name_are_spliced_alike(session_of: SessionOf, stack: str) -> None:
    session = session_of("llama", stack, "left")
    backend, inputs = session.module.backend, inputs_of(session, "left")
    for name in ("layers.1.resid_mid", "layers.1.attn_z", "layers.1.mlp_out"):
        (alias, *_) = aliases(name)
        by_name, by_alias = (backend.run_spliced(inputs, [RandomDictionary(at)]) for at in (name, alias))
        assert torch.equal(by_name.answer_logits, by_alias.answer_logits)
        assert (by_name.answer_logits - backend.run(inputs)).abs().max() > 0.01
        with pytest.raises(it.HookPointError, match="both read at"):
            backend.run_spliced(inputs, [RandomDictionary(name), RandomDictionary(alias)])


@pytest.mark.parametrize("stack", STACKS)
def test_a_transcoder_hands_on_to_an_autoencoder_that_names_its_place_otherwise(
    session_of: SessionOf, stack: str
) -> None:
    session = session_of("llama", stack, "left")
    backend, inputs = session.module.backend, inputs_of(session, "left")
    runs = []
    for reader in ("layers.1.mlp_out", "blocks.1.hook_mlp_out"):
        transcoder = RandomDictionary("layers.1.mlp_in", output="layers.1.mlp_out")
        runs.append(backend.run_spliced(inputs, [RandomDictionary(reader, seed=1), transcoder]).answer_logits)
    assert torch.equal(*runs)


@pytest.mark.parametrize("stack", STACKS)
def test_a_misspelt_name_is_refused_with_the_nearest(session_of: SessionOf, stack: str) -> None:
    backend = session_of("llama", stack, "left").module.backend
    with pytest.raises(
        it.HookPointError, match=r"no hook point 'blocks.1.hook_resid_pots'. Nearest: blocks.1.hook_resid_post"
    ):
        backend.check_hook_points(["blocks.1.hook_resid_pots"])
    with pytest.raises(it.HookPointError, match=r"no hook point 'layers.1.resid_most'. Nearest: layers.1.resid_post"):
        backend.check_hook_points(["layers.1.resid_most"])
    with pytest.raises(it.HookPointError, match="no hook point 'layers.3.resid_pre'"):
        backend.check_hook_points(["layers.3.resid_pre"])


SERIAL = ("llama", "gpt2", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "granite", "olmo2")
SIDE_BY_SIDE = ("neox", "phi", "cohere")


@pytest.mark.parametrize("kind", SERIAL)
def test_serial_decoders_have_every_place(kind: str) -> None:
    backend = HuggingFaceBackend(make_model(kind))
    inputs = ModelInputs(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long))
    names = [name for name, _ in canonical_names(BLOCKS)]
    assert set(names) <= set(backend.hook_point_names())
    _, cache = backend.run_with_cache(inputs, names)
    assert all(cache[name].ndim == 3 for name in names)
    for layer in range(BLOCKS):
        parts = {part: cache[in_layer(layer, part)] for part in PLACES_OF_BLOCKS}
        scale = 0.5 if kind == "granite" else 1.0  # its residual multiplier
        torch.testing.assert_close(parts["resid_mid"], parts["resid_pre"] + scale * parts["attn_out"])
        torch.testing.assert_close(parts["resid_post"], parts["resid_mid"] + scale * parts["mlp_out"])


@pytest.mark.parametrize("kind", SIDE_BY_SIDE)
def test_decoders_whose_sublayers_read_the_same_have_no_place_between_them(kind: str) -> None:
    backend = HuggingFaceBackend(make_model(kind))
    with pytest.raises(it.HookPointError, match=r"layers.1.resid_mid"):
        backend.check_hook_points(["layers.1.resid_mid"])
    backend.check_hook_points(["layers.1.resid_pre", "layers.1.attn_out", "layers.1.mlp_out", "layers.1.resid_post"])


def test_sublayers_that_return_the_sum_with_the_residual_stream_are_not_what_they_add() -> None:
    backend = HuggingFaceBackend(make_model("bloom", torch.float32))
    for part in ("attn_out", "resid_mid", "mlp_out"):
        with pytest.raises(it.HookPointError, match=f"no hook point 'layers.1.{part}'.*not what is added"):
            backend.check_hook_points([f"layers.1.{part}"])
    backend.check_hook_points(["layers.1.resid_pre", "layers.1.attn_z", "layers.1.mlp_in", "layers.1.resid_post"])


def test_norms_behind_sublayers_belong_to_what_they_add() -> None:
    config = hf.Glm4Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=101, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    backend = HuggingFaceBackend(hf.AutoModelForCausalLM.from_config(config).eval())
    inputs = ModelInputs(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long))
    _, cache = backend.run_with_cache(inputs, [name for name, _ in canonical_names(2)])
    for layer in range(2):
        parts = {part: cache[in_layer(layer, part)] for part in PLACES_OF_BLOCKS}
        torch.testing.assert_close(parts["resid_mid"], parts["resid_pre"] + parts["attn_out"])
        torch.testing.assert_close(parts["resid_post"], parts["resid_mid"] + parts["mlp_out"])


def test_places_are_proved_while_no_other_edit_is_in_force() -> None:
    backend = HuggingFaceBackend(make_model("llama"))
    inputs = ModelInputs(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long))
    with backend.counted_hooks({"layers.1.resid_post": torch.zeros_like}):
        backend.forward(inputs, {"layers.1.resid_mid": lambda x: x})
    backend.forward(inputs, {"layers.1.resid_mid": lambda x: x})


def test_the_proof_leaves_mode_and_random_state_as_they_were() -> None:
    model = make_model("gpt2").train()
    model.transformer.h[1].eval()
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    HuggingFaceBackend(model).check_hook_points(["layers.1.resid_mid"])
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("stack", STACKS)
def test_logits_under_the_backend_s_own_name_are_edited_at_all_positions(session_of: SessionOf, stack: str) -> None:
    session = session_of("llama", stack, "left")
    backend, inputs = session.module.backend, inputs_of(session, "left")
    own = "lm_head:out" if stack == "core" else "unembed.hook_out"
    seen: list[Tensor] = []
    backend.forward(inputs, {own: lambda x: seen.append(x) or x}, inputs.answers)
    assert seen[0].shape[1] == inputs.tokens.shape[1]


def test_the_first_tensor_that_a_module_takes_or_returns_is_edited() -> None:
    one, other = torch.zeros(2), torch.ones(2)
    assert edited_inputs((None, one), {"mask": other}, lambda x: x + 5)[0][1].tolist() == [5, 5]
    assert edited_inputs((), {"flag": True, "hidden_states": one}, lambda x: x + 5)[1]["hidden_states"].tolist() == [
        5,
        5,
    ]
    assert edited_inputs((None,), {"flag": True}, torch.neg) == ((None,), {"flag": True})
    assert edited_output((one, other), lambda x: x + 5)[0].tolist() == [5, 5]
    assert edited_output((None, other), torch.neg) == (None, other)
    assert edited_output(None, torch.neg) is None
    assert edited_output(BaseModelOutput(last_hidden_state=one), lambda x: x + 5).last_hidden_state.tolist() == [5, 5]


def test_a_verdict_that_was_found_under_someone_else_s_edits_is_found_again() -> None:
    model = make_model("llama")
    one, other = HuggingFaceBackend(model), HuggingFaceBackend(model)
    with one.hooked({"layers.1.resid_mid": lambda x: 2 * x}), pytest.raises(it.HookPointError):
        other.check_hook_points(["layers.1.resid_mid"])
    other.check_hook_points(["layers.1.resid_mid"])


def test_blocks_that_share_a_sublayer_have_no_place_of_their_own_there() -> None:
    model = make_model("llama")
    model.model.layers[2].mlp = model.model.layers[1].mlp
    backend = HuggingFaceBackend(model)
    backend.check_hook_points(["layers.2.attn_out", "layers.0.mlp_out"])
    for name in ("layers.1.mlp_out", "layers.2.mlp_out"):  # an edit of one would be an edit of both
        with pytest.raises(it.HookPointError, match=f"no hook point '{name}'"):
            backend.check_hook_points([name])


def test_dropout_does_not_hide_the_place_between_attention_and_mlp() -> None:
    model = make_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    HuggingFaceBackend(model.train()).check_hook_points([in_layer(i, "resid_mid") for i in range(BLOCKS)])


def test_an_edit_in_place_may_keep_what_it_was_given() -> None:
    stream, kept = torch.zeros(1, 2, 3), list[Tensor]()
    in_place(lambda activations: kept.append(activations) or activations + 1)(stream)
    assert stream.tolist() == torch.ones(1, 2, 3).tolist()
    assert kept[0].tolist() == torch.zeros(1, 2, 3).tolist()


@pytest.mark.parametrize("inference", [False, True])
def test_an_edit_that_writes_into_its_copy_counts_as_one_that_returns_another(inference: bool) -> None:
    with torch.inference_mode(inference):
        for edit in (lambda given: given.add_(1), lambda given: given + 1):
            stream = torch.zeros(1, 2, 3)
            assert in_place(edit)(stream) is stream
            assert stream.tolist() == torch.ones(1, 2, 3).tolist()
    kept = torch.zeros(1, 2, 3)
    assert at_home(lambda given: given, torch.device("meta"))(kept) is kept


def test_captured_activations_are_what_stood_there_then() -> None:
    model = make_model("llama")
    backend, tokens = HuggingFaceBackend(model), torch.tensor([[1, 5, 7]])
    inputs, names = ModelInputs(tokens, torch.ones_like(tokens)), ["layers.0.resid_post", "layers.2.resid_post"]
    expected = backend.capture(inputs, names)[names[0]]

    def double(_: Any, args: Any) -> None:
        args[0].mul_(2)

    model.model.layers[1].register_forward_pre_hook(double)
    with torch.no_grad():
        found = [backend.capture(inputs, names), backend.run_with_cache(inputs, names)[1]]
    for cache in found:
        assert torch.equal(cache[names[0]], expected)
