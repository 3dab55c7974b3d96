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
from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge
from transformers import AutoTokenizer

import interpretune as it
from interpretune.analysis import Points, ablate, ablate_from, activation_name
from interpretune.latents.identity import IdentityDictionary
from interpretune.replay.ablation import ablate_everywhere
from interpretune.replay.gradients import attribute, gradient_edges
from interpretune_tlens import ITLensConfig, ITLensFromPretrainedNoProcessingConfig, loading, replay as tlens_replay
from interpretune_tlens.backend import TransformerLensBackend
from tests.replay.ablated_rows import ATOL, EAGER_ATOL, Row, active_rows, error_of, rows_of, worst_error
from tests.sessions import STACKS
from tests.tiny_architectures import backend_of, batch_of, dictionary, make_model

BRIDGED = ("llama", "gpt2 by layer", "mistral", "qwen3", "gemma2", "gemma3", "granite", "cohere")
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
        cfg = ITLensFromPretrainedNoProcessingConfig(use_bridge=stack == "bridge")
        return TransformerLensBackend(loading.convert(model, tokenizer, cfg, torch.device("cpu")).eval())

    return make


def models_at(*places: str, dtype: torch.dtype = torch.float64) -> list[Any]:
    return [dictionary(place, i).to(dtype) for i, place in enumerate(places)]


TWO = ("blocks.1.hook_resid_post", "blocks.3.hook_mlp_out")
LOW, HIGH = (f"{place}.hook_sae_acts_post" for place in TWO)


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


@pytest.mark.parametrize("kind", BRIDGED)
def test_suffixes_on_bridges_are_exact(backend: Make, kind: str) -> None:
    """Bridges normalise scores in float32, over other numbers of masked keys in a forward than in a replay."""
    assert suffix_error(backend("bridge", kind), (9, 9), "left", torch.float64) < EAGER_ATOL
    side = ("left", "right")[BRIDGED.index(kind) % 2]
    assert suffix_error(backend("bridge", kind, torch.float32), (3, 9), side, torch.float32) < 2e-5


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
    for name, each in {"core": core, **{stack: backend(stack, kind) for stack in STACKS[1:]}}.items():
        prefill = each.prefill(inputs, models_at(*TWO))
        assert prefill.kept is not None
        rows = active_rows(prefill, LOW)
        effects = ablate(prefill, rows) - prefill.logits[rows.points]
        everywhere = ablate_everywhere(prefill, rows) - prefill.logits[rows.points]
        slopes = attribute(prefill, lambda logits, _: logits[:, :5].sum(), [LOW, HIGH])
        edges = [edge.values.flatten() for edge in gradient_edges(prefill, LOW, HIGH)]
        found[name] = torch.cat([effects.flatten(), everywhere.flatten(), *map(torch.flatten, slopes.values()), *edges])
    assert found["core"].abs().max() > 1e-1
    for name in STACKS[1:]:
        torch.testing.assert_close(found[name], found["core"], rtol=0, atol=1e-5)


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
    ("bridge", "opt"): "(never runs blocks.0.attn.hook_attn_scores|hook_attn_scores shows no scores)",  # 3.9, 4
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


def test_scores_that_are_shown_after_the_softmax_are_refused(backend: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """So TransformerLens 4 shows those of OPT."""
    visible = tlens_replay._visible
    monkeypatch.setattr(tlens_replay, "_visible", lambda scores: visible(scores.softmax(-1)))
    with pytest.raises(it.ReplayRefusedError, match="blocks.0.attn.hook_attn_scores shows no scores in which later"):
        backend("bridge", "llama").create_replay()


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
