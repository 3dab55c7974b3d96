"""Replays of hooked transformers give the logits of whole forwards, and spare what nobody looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.components import GatedMLP

from interpretune.analysis import ablate
from interpretune.replay.gradients import attribute
from interpretune_tlens.backend import TransformerLensBackend
from interpretune_tlens.hooked import spared_work
from interpretune_tlens.hooked.loading import quiet
from tests.replay.ablated_rows import ATOL, active_rows, worst_error
from tests.tiny_architectures import BLOCKS, VOCABULARY, WIDTH, WINDOW, batch_of
from tests.tlens.test_replay import LOW, RAGGED, TWO, Make, backend, models_at, suffix_error

__all__ = ["backend"]  # a fixture
HOOKED = ("llama", "gpt2", "mistral", "qwen3", "neox", "opt")


@pytest.mark.parametrize(
    ("kind", "side"),
    [*((kind, "left") for kind in HOOKED), ("gpt2", "right"), ("llama", "right"), ("mistral", "right")],
)
def test_hooked_transformers_are_exact(backend: Make, kind: str, side: str) -> None:
    for lengths in (RAGGED, (11,)):
        assert worst_error(backend("hooked", kind).prefill(batch_of(lengths, side), models_at(*TWO))) < ATOL


@pytest.mark.parametrize("kind", HOOKED)
def test_suffixes_on_hooked_transformers_are_exact(backend: Make, kind: str) -> None:
    for side in ("left", "right"):
        assert suffix_error(backend("hooked", kind), (9, 4, 12, 1), side, torch.float64) < ATOL


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
    with torch.random.fork_rng(), quiet():
        model = HookedTransformer(cfg).eval()
    prefill = TransformerLensBackend(model, NoSpecialTokens).prefill(batch_of(RAGGED, side), models_at(*TWO))
    assert worst_error(prefill) < ATOL
    columns = torch.tensor([7, 3])
    rows = active_rows(prefill, LOW)
    torch.testing.assert_close(ablate(prefill, rows, columns), ablate(prefill, rows)[:, columns], rtol=0, atol=ATOL)


class NoSpecialTokens:
    """Stands in for a tokenizer without special tokens."""

    all_special_ids = ()


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
