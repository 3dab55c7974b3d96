"""Transcoders with a skip connection: whose decoder also reads what was encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from interpretune.analysis import LatentRows, Points, ablate, activation_name, measure_latent_quality
from interpretune.latents import LatentModel, reconstruct
from interpretune.questions import effects
from interpretune.replay import ablate_from
from interpretune.replay.gradients import attribute, integrated_gradients
from interpretune.testing.tiny_models import VOCABULARY, tiny_llama, tiny_tokenizer
from interpretune.training.latent_training import LatentSample
from tests.latents.test_several_hook_points import row_of, some_rows
from tests.replay.ablated_rows import ATOL, rows_of
from tests.tiny_architectures import WIDTH, backend_of, batch_of, make_model
from tests.tiny_latents import activations_of

LATENTS = 12
PLACES = (("layers.0.mlp_in", "layers.2.mlp_out"), ("layers.1.mlp_in", "layers.1.mlp_out"))
"""Where the two read and write: one across layers, the other in one of the layers between."""
Edit = Callable[[str, Tensor], Tensor]


class SkipTranscoder:
    """ReLU latents, a linear decoder, and a linear map of the input; it holds on to no activations."""

    skips_special_tokens = False
    has_skip_connection = True

    def __init__(self, reads: str, writes: str, *, error: bool = False, linear: bool = True, seed: int = 0) -> None:
        self.name, self.hook_point, self.output_hook_point = f"skip at {reads}", reads, writes
        self.d_in, self.d_sae, self.use_error_term, self.linear = WIDTH, LATENTS, error, linear
        draw = torch.Generator().manual_seed(seed)
        shapes = {"w_enc": (WIDTH, LATENTS), "w_dec": (LATENTS, WIDTH), "w_skip": (WIDTH, WIDTH), "b_dec": (WIDTH,)}
        for name, shape in shapes.items():
            setattr(self, name, torch.randn(shape, generator=draw, dtype=torch.float64) / 5)

    def encode(self, activations: Tensor) -> Tensor:
        return torch.relu(activations @ self.w_enc)

    def decode(self, latents: Tensor, inputs: Tensor) -> Tensor:
        return latents @ self.w_dec + inputs @ self.w_skip + self.b_dec

    def decoder_rows(self, latents: Tensor) -> Tensor | None:
        return self.w_dec[latents] if self.linear else None

    def dashboard_url(self) -> str | None:
        return None


@cache
def backend() -> Any:
    return backend_of(make_model("llama"))


def pair(**settings: Any) -> list[SkipTranscoder]:
    return [SkipTranscoder(*places, seed=i, **settings) for i, places in enumerate(PLACES)]


def plain(model: Any, tokens: Tensor, items: Sequence[SkipTranscoder], edit: Edit) -> Tensor:
    """Logits ``[pos, vocab]`` of one unpadded row, by torch hooks and the formula of a skip transcoder."""
    handles = []
    for item in items:
        read, made = int(item.hook_point.split(".")[1]), int(item.output_hook_point.split(".")[1])
        held: list[Tensor] = []

        def keep(_: Any, args: Any, item: Any = item, held: list[Tensor] = held) -> None:
            x = args[0]
            latents = torch.relu(x @ item.w_enc)
            changed = edit(activations_of(item), latents.clone())
            if item.use_error_term:
                held[:] = [(changed - latents) @ item.w_dec]
            else:
                held[:] = [changed @ item.w_dec + x @ item.w_skip + item.b_dec]

        def put(_: Any, __: Any, out: Tensor, item: Any = item, held: list[Tensor] = held) -> Tensor:
            return out + held[0] if item.use_error_term else held[0]

        handles.append(model.model.layers[read].mlp.register_forward_pre_hook(keep))
        handles.append(model.model.layers[made].mlp.register_forward_hook(put))
    try:
        return model(input_ids=tokens.unsqueeze(0)).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def setting(sets: Mapping[str, Mapping[int, float]], at: int | slice) -> Edit:
    def change(name: str, latents: Tensor) -> Tensor:
        for latent, value in sets.get(name, {}).items():
            latents[0, at, latent] = value
        return latents

    return change


def test_it_is_a_latent_model_although_decode_takes_more() -> None:
    assert isinstance(pair()[0], LatentModel)


@pytest.mark.parametrize(
    ("error", "linear", "side", "lengths"),
    [(False, True, "left", (7, 3, 1)), (True, True, "right", (7, 3, 1)), (False, False, "right", (6,))],
)
def test_splices_and_ablations_equal_plain_loops(
    error: bool, linear: bool, side: str, lengths: tuple[int, ...]
) -> None:
    items, inputs, own = pair(error=error, linear=linear), batch_of(lengths, side), backend()
    own.check_latent_models(items)
    prefill = own.prefill(inputs, items)
    rows = some_rows(prefill)

    @torch.no_grad()
    def by_hand(sets: Any, point: int) -> Tensor:
        tokens, at = row_of(inputs, prefill.points, point)
        return plain(own.model, tokens, items, setting(sets, at))[at]

    clean = torch.stack([by_hand({}, point) for point in range(len(lengths))])
    run = own.run_spliced(inputs, items)
    for found in (prefill.logits, run.answer_logits):
        torch.testing.assert_close(found, clean, rtol=0, atol=ATOL)
    wanted = torch.stack([by_hand(sets, point) for point, sets in rows])
    assert prefill.kept is not None
    torch.testing.assert_close(ablate(prefill, rows_of(rows)), wanted, rtol=0, atol=ATOL)
    torch.testing.assert_close(ablate(prefill, rows_of(rows), naive=True), wanted, rtol=0, atol=ATOL)
    assert (wanted - clean[rows_of(rows).points]).abs().amax() > 0.1


@pytest.mark.parametrize("error", [False, True])
def test_ablations_at_earlier_tokens_equal_plain_loops(error: bool) -> None:
    items, inputs, own = pair(error=error), batch_of((6, 3), "left"), backend()
    points = Points(torch.tensor([0, 1]), torch.tensor([2, 4]))
    prefill = own.prefill(inputs, items, points)
    rows, wanted = some_rows(prefill), []
    for point, sets in rows:
        tokens, at = row_of(inputs, points, point)
        with torch.no_grad():
            wanted.append(plain(own.model, tokens, items, setting(sets, at))[-1])
    torch.testing.assert_close(ablate_from(prefill, rows_of(rows))[:, 0], torch.stack(wanted), rtol=0, atol=ATOL)


@pytest.mark.parametrize("error", [False, True])
def test_gradients_are_those_of_plain_loops(error: bool) -> None:
    """Without an error term, a gradient passes from the output of the upper one to its input, past its latents."""
    items, inputs, own = pair(error=error), batch_of((6,), "left"), backend()
    names = list(map(activation_name, items))
    prefill = own.prefill(inputs, items)
    found = attribute(prefill, lambda logits, _: logits[:, 5].sum(), names)
    _, whole = own.gradients(inputs, items, lambda logits: logits[:, 5].sum(), names)
    tokens, at = row_of(inputs, prefill.points, 0)
    moved = torch.zeros(1, LATENTS, requires_grad=True, dtype=torch.float64)

    def move(name: str, latents: Tensor) -> Tensor:
        if name == names[0]:
            latents[:, at] = latents[:, at] + moved
        return latents

    with torch.enable_grad():
        (wanted,) = torch.autograd.grad(plain(own.model, tokens, items, move)[at, 5], [moved])
    for name in names:
        torch.testing.assert_close(found[name], prefill.points.of(whole[name]), rtol=0, atol=ATOL)
    if not error:  # with one, gradients pass as through the identity, and not through the upper latents
        torch.testing.assert_close(found[names[0]], wanted, rtol=0, atol=ATOL)
    assert found[names[0]].abs().max() > 1e-2


def test_gradients_pass_by_a_skip_connection_with_an_error_term() -> None:
    """Without edits it leaves the model as it is, and so do its gradients."""
    below, above = SkipTranscoder("layers.0.mlp_in", "layers.0.mlp_out"), pair(error=True)[1]
    inputs, own, name = batch_of((6,), "left"), backend(), activation_name(below)

    def gradient(items: list[SkipTranscoder]) -> Tensor:
        record = list(map(activation_name, items))  # recorded, so that it is encoded
        return own.gradients(inputs, items, lambda logits: logits[:, 5].sum(), record)[1][name]

    torch.testing.assert_close(gradient([below, above]), gradient([below]), rtol=0, atol=ATOL)


def test_integrated_gradients_add_up_to_the_effect_of_all() -> None:
    item, inputs, own = pair()[1], batch_of((6, 4), "right"), backend()
    name, prefill = activation_name(item), own.prefill(inputs, [item])
    parts = integrated_gradients(prefill, lambda logits, _: logits[:, 5].sum(), [name], steps=400)[name]
    alive = [latents.nonzero().flatten() for latents in prefill.latents[name]]
    without = ablate(prefill, LatentRows.sets(name, torch.arange(2), alive))
    torch.testing.assert_close(parts.sum(-1), (prefill.logits - without)[:, 5], rtol=1e-4, atol=1e-5)


def test_effects_of_a_question_equal_plain_loops() -> None:
    model, tokenizer = tiny_llama().double().eval(), tiny_tokenizer()
    items = pair()
    found = effects(model, tokenizer, ["Ada sees the red dog"], [" house", " tree"], correct=0, units=items)
    answers = [VOCABULARY[word.strip()] for word in (" house", " tree")]
    tokens = torch.tensor(tokenizer("Ada sees the red dog")["input_ids"])

    @torch.no_grad()
    def difference(sets: Any) -> float:
        logits = plain(model, tokens, items, setting(sets, -1))[-1]
        return (logits[answers[0]] - logits[answers[1]]).item()

    table, clean = found.to_pandas(), difference({})
    assert table.units.nunique() == 2
    for row in table.itertuples():
        item = next(item for item in items if item.name == row.units)
        assert row.effect == pytest.approx(clean - difference({activations_of(item): {row.unit: 0.0}}), abs=1e-6)


def test_quality_and_training_decode_with_inputs() -> None:
    """One whose skip connection is what it reads, and whose latents write nothing, reconstructs without loss."""
    item, own, inputs = SkipTranscoder("layers.1.mlp_out", "layers.1.mlp_out"), backend(), batch_of((5, 3), "left")
    item.w_dec, item.b_dec = item.w_dec * 0, item.b_dec * 0
    item.w_skip = torch.eye(WIDTH, dtype=torch.float64)
    batch = {"input_ids": inputs.tokens, "attention_mask": inputs.attention_mask}
    (quality,) = measure_latent_quality(own, [item], [batch])
    assert quality.explained_variance == pytest.approx(1)
    assert quality.loss_spliced == pytest.approx(quality.loss_clean)
    activations = torch.randn(4, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(LatentSample(item, activations, activations).run()[1], activations)


def test_what_has_none_is_decoded_without_inputs() -> None:
    """One class may be both: what counts is what the object says."""
    item, inputs = pair()[0], torch.randn(1, 2, WIDTH, dtype=torch.float64)
    latents = item.encode(inputs)
    assert torch.equal(reconstruct(item, latents, inputs), item.decode(latents, inputs))
    item.has_skip_connection = False
    with pytest.raises(TypeError, match="inputs"):
        reconstruct(item, latents, inputs)
