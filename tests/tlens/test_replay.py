"""Replays of bridges and hooked transformers give the logits of whole forwards; all backends agree on effects."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.components import GatedMLP
from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge
from transformers import AutoTokenizer

import interpretune as it
from interpretune.analysis import Points, ablate, ablate_from, activation_name
from interpretune.latents.identity import IdentityDictionary
from interpretune.replay.ablation import ablate_everywhere
from interpretune.replay.gradients import attribute, gradient_edges
from interpretune_tlens import (
    ITLensConfig,
    ITLensFromPretrainedNoProcessingConfig,
    loading,
    replay as tlens_replay,
    spared_work,
)
from interpretune_tlens.backend import TransformerLensBackend
from tests.replay.ablated_rows import ATOL, EAGER_ATOL, Row, active_rows, error_of, rows_of, worst_error
from tests.tiny_architectures import (
    BLOCKS,
    VOCABULARY,
    WIDTH,
    WINDOW,
    backend_of,
    batch_of,
    dictionary,
    make_model,
)

BRIDGED = ("llama", "gpt2 by layer", "mistral", "qwen3", "gemma2", "gemma3", "granite", "cohere")
HOOKED = ("llama", "gpt2", "mistral", "qwen3", "neox", "opt")
RAGGED = (9, 4, 12, 1)
EQUAL = (12, 12, 12)
Make = Callable[..., TransformerLensBackend]


@pytest.fixture(scope="module")
def backend(llama_folder: Path) -> Make:
    """Bridges normalise scores in float32 always, and with padding they give NaN in float64.

    Attention of a model "by layer" divides scores by the number of the layer and, as in older transformers, has no
    attribute that says the scale.
    """
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)

    @cache
    def make(stack: str, kind: str, dtype: torch.dtype = torch.float64) -> TransformerLensBackend:
        model = make_model(kind.removesuffix(" by layer"), dtype)
        if kind.endswith(" by layer"):
            model.config.scale_attn_by_inverse_layer_idx = True
            for block in model.transformer.h:
                vars(block.attn).pop("scaling", None)
        model.config.architectures = [type(model).__name__]
        build = loading._bridge if stack == "bridge" else loading._hooked
        cfg = ITLensFromPretrainedNoProcessingConfig(use_bridge=stack == "bridge")
        return TransformerLensBackend(build(model, tokenizer, cfg, torch.device("cpu")).eval())

    return make


def models_at(*places: str, dtype: torch.dtype = torch.float64) -> list[Any]:
    return [dictionary(place, i).to(dtype) for i, place in enumerate(places)]


TWO = ("blocks.1.hook_resid_post", "blocks.3.hook_mlp_out")
LOW, HIGH = (f"{place}.hook_sae_acts_post" for place in TWO)


@pytest.mark.parametrize(
    ("kind", "side"),
    [*((kind, "left") for kind in HOOKED), ("gpt2", "right"), ("llama", "right"), ("mistral", "right")],
)
def test_hooked_transformers_are_exact(backend: Make, kind: str, side: str) -> None:
    for lengths in (RAGGED, (11,)):
        assert worst_error(backend("hooked", kind).prefill(batch_of(lengths, side), models_at(*TWO))) < ATOL


@pytest.mark.parametrize("kind", BRIDGED)
def test_bridges_are_exact_to_1e_10_in_float64_and_to_2e_5_in_float32(backend: Make, kind: str) -> None:
    """A replay normalises scores in float32 too, where the model does: nothing but its last digit comes from that."""
    bound = EAGER_ATOL if kind in ("mistral", "gemma2", "gemma3") else ATOL
    double, single = (backend("bridge", kind, dtype) for dtype in (torch.float64, torch.float32))
    for lengths in (EQUAL, (11,)):
        assert worst_error(double.prefill(batch_of(lengths, "left"), models_at(*TWO))) < bound
    prefill = single.prefill(batch_of(RAGGED, "left"), models_at(*TWO, dtype=torch.float32))
    assert worst_error(prefill) < 2e-5


@pytest.mark.parametrize(("stack", "kind"), [("hooked", "gpt2"), ("bridge", "llama"), ("bridge", "gemma3")])
def test_rows_of_neurons_begin_above_their_block(backend: Make, stack: str, kind: str) -> None:
    made, inputs = backend(stack, kind), batch_of(EQUAL, "left")
    width = made.capture(inputs, ["layers.1.mlp_act"])["layers.1.mlp_act"].shape[-1]
    prefill = made.prefill(inputs, [IdentityDictionary(f"layers.{layer}.mlp_act", width) for layer in (1, 3)])
    assert prefill.require_kept().projected.keys() == prefill.latents.keys()
    assert worst_error(prefill) < (EAGER_ATOL if kind == "gemma3" else ATOL)


def suffix_error(backend: TransformerLensBackend, lengths: tuple[int, ...], side: str, dtype: torch.dtype) -> float:
    """Largest difference between rows that rerun tokens from every position on and whole forwards."""
    inputs = batch_of(lengths, side)
    points = Points(*inputs.attention_mask.nonzero().unbind(-1))
    prefill = backend.prefill(inputs, models_at(*TWO, dtype=dtype), points)
    rows = rows_of([(point, {LOW: {3: 0.4, 5: 0.0}, HIGH: {8: 0.5}}) for point in range(len(points))])
    wanted = torch.stack([points.positions, inputs.answer_positions[points.examples]], dim=-1)
    expected = ablate_from(prefill, rows, wanted, naive=True)
    assert ((expected[:, 0] - prefill.logits).abs().amax(-1) > 1e-3).all()
    found = ablate_from(prefill, rows, wanted)
    assert all(check.passed for check in backend.replays.checks())
    narrow = ablate_from(prefill, rows, wanted, torch.tensor([5]), row_budget=20)
    torch.testing.assert_close(narrow, found[..., 5:6], rtol=0, atol=2e-5)
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("kind", HOOKED)
def test_suffixes_on_hooked_transformers_are_exact(backend: Make, kind: str) -> None:
    for side in ("left", "right"):
        assert suffix_error(backend("hooked", kind), (9, 4, 12, 1), side, torch.float64) < ATOL


@pytest.mark.parametrize("kind", BRIDGED)
def test_suffixes_on_bridges_are_exact(backend: Make, kind: str) -> None:
    """Bridges normalise scores in float32, over other numbers of masked keys in a forward than in a replay."""
    assert suffix_error(backend("bridge", kind), (9, 9), "left", torch.float64) < EAGER_ATOL
    for side in ("left", "right"):
        assert suffix_error(backend("bridge", kind, torch.float32), (3, 9), side, torch.float32) < 2e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_hooked_transformer_like_gemma_is_exact(side: str) -> None:
    """Local attention, soft-capped scores and logits, normed queries and keys, grouped heads, norms after sublayers."""
    cfg = HookedTransformerConfig(
        n_layers=BLOCKS, d_model=WIDTH, n_ctx=64, d_head=8, n_heads=4, n_key_value_heads=2, d_mlp=48,
        d_vocab=VOCABULARY, act_fn="gelu_pytorch_tanh", normalization_type="RMS", rotary_dim=8,
        positional_embedding_type="rotary",
        use_local_attn=True, window_size=WINDOW, attn_types=["local", "global"] * 2, attn_scores_soft_cap=5.0,
        output_logits_soft_cap=6.0, use_qk_norm=True, use_normalization_before_and_after=True, gated_mlp=True,
        dtype=torch.float64, device="cpu", seed=0, initializer_range=0.25,
    )  # fmt: skip
    with torch.random.fork_rng(), loading._quiet():
        model = HookedTransformer(cfg).eval()
    prefill = TransformerLensBackend(model, NoSpecialTokens).prefill(batch_of(RAGGED, side), models_at(*TWO))
    assert worst_error(prefill) < ATOL
    columns = torch.tensor([7, 3])
    rows = active_rows(prefill, LOW)
    torch.testing.assert_close(ablate(prefill, rows, columns), ablate(prefill, rows)[:, columns], rtol=0, atol=ATOL)


class NoSpecialTokens:
    """Stands in for a tokenizer without special tokens."""

    all_special_ids = ()


PLACES = {
    "embedding": [("blocks.0.hook_resid_pre", None)],
    "last": [("blocks.3.hook_resid_post", None)],
    "hook_z": [("blocks.1.attn.hook_z", None)],
    "mlp_act": [("blocks.1.mlp.hook_post", None)],
    "attn_out": [("blocks.2.hook_attn_out", None), ("blocks.1.hook_resid_post", None)],
    "transcoder": [("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"), ("blocks.1.hook_mlp_out", None)],
    "all of one block, the highest first": [
        ("blocks.1.hook_resid_post", None),
        ("blocks.1.hook_mlp_out", None),
        ("blocks.1.attn.hook_z", None),
    ],
}


SETTINGS: list[dict[str, bool]] = [{}, {"linear": False}, {"error": True, "skips": True}]
IN_TURN = [
    (("bridge", "hooked")[(i + j) % 2], places, settings)
    for i, places in enumerate(PLACES)
    for j, settings in enumerate(SETTINGS)
]
"""Each place with each kind of latent model, in one of the two classes of models."""


@pytest.mark.parametrize(("stack", "places", "settings"), IN_TURN)
def test_every_place_of_latent_models_is_exact(
    backend: Make, stack: str, places: str, settings: dict[str, bool]
) -> None:
    models = [dictionary(read, i, output=write, **settings) for i, (read, write) in enumerate(PLACES[places])]
    lengths = EQUAL if stack == "bridge" else RAGGED
    prefill = backend(stack, "llama").prefill(batch_of(lengths, "left"), models)
    assert worst_error(prefill) < ATOL
    assert error_of(prefill, rows_of(together(prefill))) < ATOL


def together(prefill: Any) -> list[Row]:
    """Half of all latents of all latent models are set, in each example."""
    sets = {name: dict.fromkeys(range(0, 24, 2), 0.2) for name in prefill.latent_models}
    return [(point, sets) for point in range(len(prefill.points))]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_all_backends_agree_on_effects(backend: Make, kind: str) -> None:
    inputs, found = batch_of(EQUAL, "left"), {}
    core = backend_of(make_model(kind))
    for name, each in {"core": core, **{stack: backend(stack, kind) for stack in ("bridge", "hooked")}}.items():
        prefill = each.prefill(inputs, models_at(*TWO))
        assert prefill.kept is not None
        rows = active_rows(prefill, LOW)
        effects = ablate(prefill, rows) - prefill.logits[rows.points]
        everywhere = ablate_everywhere(prefill, rows) - prefill.logits[rows.points]
        slopes = attribute(prefill, lambda logits, _: logits[:, :5].sum(), [LOW, HIGH])
        edges = [edge.values.flatten() for edge in gradient_edges(prefill, LOW, HIGH)]
        found[name] = torch.cat([effects.flatten(), everywhere.flatten(), *map(torch.flatten, slopes.values()), *edges])
    assert found["core"].abs().max() > 1e-1
    torch.testing.assert_close(found["hooked"], found["core"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["bridge"], found["core"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stack", ["bridge", "hooked"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_replays_leave_no_hooks_and_no_replaced_parts(backend: Make, stack: str, kind: str) -> None:
    each = backend(stack, kind)
    modules = list(each.model.modules())
    prefill = each.prefill(batch_of(EQUAL, "left"), models_at(*TWO))
    rows = active_rows(prefill, LOW)
    before = traces(modules)
    ablate(prefill, rows, torch.tensor([3, 4]))
    ablate_everywhere(prefill, rows)
    attribute(prefill, lambda logits, _: logits.sum(), [LOW, HIGH])
    gradient_edges(prefill, LOW, HIGH)
    with pytest.raises(ZeroDivisionError), fails_in_attention():
        ablate(prefill, rows)
    assert traces(modules) == before
    assert worst_error(prefill) < ATOL


def traces(modules: list[Any]) -> list[tuple[set[str], int, int]]:
    return [(set(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]


@contextlib.contextmanager
def fails_in_attention() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tlens_replay, "attend", lambda *_: 1 / 0)
        yield


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bridge_with_quantized_weights_is_replayed_with_4_bits_and_refused_with_8(
    llama_folder: Path, bits: int
) -> None:
    pytest.importorskip("bitsandbytes")
    source = {
        "model_name_or_path": str(llama_folder),
        "device": "cpu",
        "hf_from_pretrained_cfg": it.HFFromPretrainedConfig(quantization={f"load_in_{bits}bit": True}),
    }
    model = loading.load_model(ITLensConfig(**source, tl_cfg=ITLensFromPretrainedNoProcessingConfig(use_bridge=True)))
    each = TransformerLensBackend(model.eval(), AutoTokenizer.from_pretrained(llama_folder))
    prefilled = lambda: each.prefill(batch_of(RAGGED, "left"), models_at(TWO[0], dtype=torch.float32))  # noqa: E731
    if bits == 4:
        assert worst_error(prefilled()) < 2e-5
        return
    with pytest.warns(UserWarning, match="has 8-bit weights.*whole forward for each row instead") as seen:
        assert prefilled().kept is None
    assert len(seen) == 1


# ------------------------------------------------------------------------------------------------------------ refusals

REASONS = {
    ("bridge", "bloom"): "bias by distance",
    ("bridge", "falcon"): "bias by distance",
    ("bridge", "gpt_oss"): "attention has sinks",
    ("bridge", "bert"): "not causal",
    ("bridge", "neox"): "never runs blocks.0.attn.hook_rot_q",
    ("bridge", "opt"): "never runs blocks.0.attn.hook_attn_scores",
    ("bridge", "llama4"): "never runs blocks.0.attn.hook_rot_q",
    ("hooked", "bloom"): "position embeddings of the kind 'alibi'",
    ("hooked", "gpt_oss"): "use_attention_sinks",
}


@pytest.mark.parametrize(("stack", "kind"), REASONS)
def test_refused_architectures_warn_once_and_take_the_plain_loop(backend: Make, stack: str, kind: str) -> None:
    dtype = torch.float32 if kind == "gpt_oss" else torch.float64
    each, inputs, models = backend(stack, kind, dtype), batch_of((9, 9), "left"), models_at(TWO[0], dtype=dtype)
    with pytest.warns(UserWarning, match=f"{REASONS[stack, kind]}.*whole forward for each row instead") as seen:
        prefill = each.prefill(inputs, models)
    assert len(seen) == 1
    assert prefill.kept is None
    assert each.prefill(inputs, models).kept is None
    rows = active_rows(prefill, LOW)
    point, latent = int(rows.points[0]), int(rows.changes[LOW].latents[0])

    def zero(latents: torch.Tensor) -> torch.Tensor:
        return latents.clone().index_put_(
            (torch.tensor(point), torch.tensor(8), torch.tensor(latent)), latents.new_zeros(())
        )

    with torch.no_grad():
        wanted = each.run_spliced(inputs, models, {LOW: zero}).answer_logits[point]
    found = ablate(prefill, rows)[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert (found - prefill.logits[point]).abs().max() > 1e-4


@pytest.mark.parametrize("part", ["q", "k", "v"])
@pytest.mark.parametrize("stack", ["bridge", "hooked"])
def test_latent_models_inside_of_attention_are_refused(backend: Make, stack: str, part: str) -> None:
    item = dictionary(f"blocks.1.attn.hook_{part}", 3)
    with pytest.warns(UserWarning, match=f"stands at blocks.1.attn.hook_{part}, inside of attention") as seen:
        prefill = backend(stack, "gpt2").prefill(batch_of(EQUAL, "left"), [item])
    assert len(seen) == 1
    assert ablate(prefill, active_rows(prefill, activation_name(item))).isfinite().all()


@pytest.mark.parametrize("stack", ["bridge", "hooked"])
def test_the_self_check_finds_wrong_replays(backend: Make, stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = tlens_replay.attend
    monkeypatch.setattr(tlens_replay, "attend", lambda *args: attend(*args[:6], 1.01 * args[6], *args[7:]))
    each = TransformerLensBackend(backend(stack, "mistral").model)
    with pytest.warns(UserWarning, match="Replayed logits differ from those of whole forwards"):
        prefill = each.prefill(batch_of(EQUAL, "left"), models_at(*TWO))
    right = backend(stack, "mistral").prefill(batch_of(EQUAL, "left"), models_at(*TWO), self_check=False)
    monkeypatch.undo()
    rows = active_rows(prefill, LOW)
    atol = EAGER_ATOL if stack == "bridge" else ATOL
    torch.testing.assert_close(ablate(prefill, rows), ablate(right, rows), rtol=0, atol=atol)


# ------------------------------------------------------------------------------------------------- what is not computed


@pytest.mark.parametrize("stack", ["bridge", "hooked"])
def test_only_wanted_positions_are_unembedded_and_edits_before_see_all(backend: Make, stack: str) -> None:
    made, inputs = backend(stack, "llama", torch.float32), batch_of(RAGGED, "right")
    points, unembedded, seen = inputs.answers, [], []

    def see(activations: Tensor) -> Tensor:
        seen.append(activations.shape[1])
        return activations * 1.5

    made.forward(inputs, {"final_norm": lambda x: x})  # names are proved by another forward, once
    handle = made.model.unembed.register_forward_hook(  # type: ignore[union-attr]
        lambda _, __, output: unembedded.append(output.shape[1])
    )
    with torch.no_grad():
        for edits in ({}, {"final_norm": see}, {"unembed.hook_in": see}):
            everywhere = made.forward(inputs, edits)
            found = made.forward(inputs, edits, points)
            torch.testing.assert_close(found, points.of(everywhere), rtol=0, atol=1e-5)
    handle.remove()
    assert unembedded == [12, 4] * 3
    assert seen == [12] * 4
    with torch.no_grad():
        found = made.forward(inputs, {"logits": lambda logits: logits.flip(1)}, points)
        flipped = made.forward(inputs, {}).flip(1)
    torch.testing.assert_close(found, points.of(flipped), rtol=0, atol=1e-5)


BELOW = ("blocks.0.hook_resid_post", None)


@pytest.mark.parametrize(
    ("places", "computed"),
    [([BELOW], set()), ([BELOW, PLACES["transcoder"][0]], {1})],
    ids=["nobody looks", "a transcoder reads"],
)
def test_norms_of_bridges_compute_statistics_in_replays_only_where_somebody_looks(
    backend: Make, monkeypatch: pytest.MonkeyPatch, places: Any, computed: set[int]
) -> None:
    made = backend("bridge", "llama")
    models = [dictionary(read, i, output=write) for i, (read, write) in enumerate(places)]
    prefill = made.prefill(batch_of(EQUAL, "left"), models, self_check=False)
    rows, called = active_rows(prefill, activation_name(models[0])), []
    norms = {id(block.ln2): index for index, block in enumerate(made.model.blocks)}  # type: ignore[arg-type]
    method = NormalizationBridge._hf_autograd_forward_with_hooks

    def note(norm: NormalizationBridge, activations: Tensor) -> Tensor:
        called.append(norms[id(norm)])
        return method(norm, activations)

    wanted = ablate(prefill, rows, naive=True)
    monkeypatch.setattr(NormalizationBridge, "_hf_autograd_forward_with_hooks", note)
    found = ablate(prefill, rows)
    assert set(called) == computed
    torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)


def test_hooked_transformers_norm_what_attention_reads_once_unless_somebody_hooks_the_norm(backend: Make) -> None:
    made = backend("hooked", "llama")
    models = models_at(*TWO)
    counts = [0] * BLOCKS
    methods = [type(block.ln1).forward for block in made.model.blocks]  # type: ignore[union-attr]

    def counted(index: int) -> Callable[..., Tensor]:
        def forward(norm: Any, activations: Tensor) -> Tensor:
            counts[index] += 1
            return methods[index](norm, activations)

        return forward

    prefill = made.prefill(batch_of(RAGGED, "left"), models, self_check=False)
    rows = active_rows(prefill, LOW)
    wanted = ablate(prefill, rows, naive=True)
    with pytest.MonkeyPatch.context() as patch:
        for index, block in enumerate(made.model.blocks):  # type: ignore[arg-type]
            patch.setitem(block.ln1.__dict__, "forward", counted(index).__get__(block.ln1))
        seen: list[Any] = []
        made.model.blocks[3].ln1.hook_scale.add_hook(lambda scale, hook: seen.append(scale))  # type: ignore[union-attr,index]
        found = ablate(prefill, rows)
        made.model.reset_hooks()  # type: ignore[operator]
    assert counts == [0, 0, 1, 3]
    assert len(seen) == 3
    torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)


def test_gated_mlps_of_hooked_transformers_work_in_one_tensor_unless_somebody_hooks_them(
    backend: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, products, seen = backend("hooked", "llama"), [], []
    mlp: Any = made.model.blocks[3].mlp  # type: ignore[union-attr,index]

    def counted(*arguments: Tensor) -> Tensor:
        products.append(arguments)
        return torch.nn.functional.linear(*arguments)

    def count(work: Callable[[], Any]) -> int:
        products.clear()
        work()
        return len(products)

    monkeypatch.setattr(spared_work, "linear", counted)
    prefill = made.prefill(batch_of(RAGGED, "left"), models_at(*TWO), self_check=False)
    rows = active_rows(prefill, LOW)
    assert count(lambda: ablate(prefill, rows)) == 2 * 3  # blocks 2 and 3, with three products each
    assert count(lambda: attribute(prefill, lambda logits, _: logits.sum(), [LOW])) == 0
    wanted = ablate(prefill, rows, naive=True)
    hook = mlp.hook_post.register_forward_hook(lambda *given: seen.append(given))
    assert count(lambda: torch.testing.assert_close(ablate(prefill, rows), wanted, rtol=0, atol=ATOL)) == 3
    hook.remove()
    assert len(seen) == 1


def test_a_gated_mlp_in_one_tensor_computes_the_same_to_the_last_digit() -> None:
    config = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=4, d_head=4, d_mlp=12, act_fn="silu", gated_mlp=True, d_vocab=5
    )
    torch.manual_seed(0)
    mlp = GatedMLP(config)
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter)
    given = torch.randn(3, 2, 8)
    before = given.clone()
    with torch.no_grad():
        assert torch.equal(spared_work._in_place(mlp)(given), GatedMLP.forward(mlp, given))
    assert torch.equal(given, before)


def test_a_norm_that_computes_once_computes_other_inputs_anew(backend: Make) -> None:
    norm = backend("hooked", "llama").model.blocks[0].ln1  # type: ignore[union-attr,index]
    forward = spared_work._OnlyOnce().forward_of(norm)
    with torch.no_grad():
        for given in torch.randn(2, 3, 1, WIDTH, dtype=torch.float64).unbind():
            assert torch.equal(forward(given), norm(given))


@pytest.mark.parametrize("where", ["in the module", "in the class", "at a hook point"])
def test_an_mlp_of_a_hooked_transformer_that_computes_something_else_does_so_in_replays(
    backend: Make, where: str
) -> None:
    made, inputs = backend("hooked", "llama"), batch_of(RAGGED, "left")
    mlp: Any = made.model.blocks[3].mlp  # type: ignore[union-attr,index]
    method = GatedMLP.forward
    usual = made.prefill(inputs, models_at(*TWO), self_check=False).logits
    with pytest.MonkeyPatch.context() as patch:
        if where == "in the module":
            patch.setitem(vars(mlp), "forward", lambda activations: 2 * method(mlp, activations))
        elif where == "in the class":
            patch.setattr(GatedMLP, "forward", lambda part, activations: 2 * method(part, activations))
        else:
            patch.setitem(mlp._modules, "hook_post", torch.nn.Softplus())
        prefill = made.prefill(inputs, models_at(*TWO), self_check=False)
        rows = active_rows(prefill, LOW)
        found, wanted = ablate(prefill, rows), ablate(prefill, rows, naive=True)
    assert (prefill.logits - usual).abs().max() > 1e-2
    torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)


def test_a_hook_on_a_norm_that_works_in_place_is_made_on_a_tensor_of_its_own_each_time(backend: Make) -> None:
    made = backend("hooked", "llama")
    norm: Any = made.model.blocks[3].ln1  # type: ignore[union-attr,index]
    hook = norm.register_forward_hook(lambda _, given, normed: normed.mul_(2))
    prefill = made.prefill(batch_of(RAGGED, "left"), models_at(*TWO), self_check=False)
    rows = active_rows(prefill, LOW)
    found, wanted = ablate(prefill, rows), ablate(prefill, rows, naive=True)
    hook.remove()
    torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)
