"""Replays equal whole forwards for any shape of batch, places of latent models, rows and budget."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from hypothesis import given, settings, strategies as st

from interpretune.analysis import HuggingFaceBackend, Points, ablate, activation_name
from tests.replay.ablated_rows import ATOL, rows_of
from tests.tiny_architectures import backend_of, batch_of, dictionary, make_model

PLACES = tuple(
    f"blocks.{block}.{place}"
    for block in (0, 1, 3)
    for place in ("hook_resid_pre", "attn.hook_z", "hook_mlp_out", "hook_resid_post")
)
D_SAE = 12


@cache
def backend(kind: str) -> HuggingFaceBackend:
    return backend_of(make_model(kind), special=(5, 6, 7))


@cache
def model_at(place: str, linear: bool, error: bool, skips: bool) -> Any:
    return dictionary(place, PLACES.index(place), d_sae=D_SAE, linear=linear, error=error, skips=skips)


LATENTS = st.dictionaries(st.integers(0, D_SAE - 1), st.sampled_from([0.0, 0.5]), max_size=4)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_replays_equal_whole_forwards(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["mistral", "gpt2"]), "kind")
    lengths = data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=4), "lengths")
    side = data.draw(st.sampled_from(["left", "right"]), "side")
    places = data.draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3, unique=True), "places")
    models = [model_at(place, *data.draw(st.tuples(*[st.booleans()] * 3), "settings")) for place in places]
    inputs = batch_of(lengths, side)
    starts = inputs.attention_mask.argmax(-1)
    tokens = [(example, offset) for example, length in enumerate(lengths) for offset in range(length)]
    chosen = data.draw(st.lists(st.sampled_from(tokens), min_size=1, max_size=4), "points")
    examples, offsets = torch.tensor(chosen).unbind(-1)
    points = None if data.draw(st.booleans(), "answers") else Points(examples, starts[examples] + offsets)
    prefill = backend(kind).prefill(inputs, models, points)
    assert prefill.kept is not None
    names = list(map(activation_name, models))
    sets = st.fixed_dictionaries({}, optional=dict.fromkeys(names, LATENTS))
    row = st.tuples(st.integers(0, len(prefill.points) - 1), sets)
    rows = data.draw(st.lists(row, max_size=6), "rows")
    rows += rows[: data.draw(st.integers(0, len(rows)), "repeated")]
    wanted = ablate(prefill, rows_of(rows), naive=True)
    for _ in range(2):
        found = ablate(prefill, rows_of(rows), row_budget=data.draw(st.sampled_from([1, 2, 1000, None]), "budget"))
        torch.testing.assert_close(found, wanted, rtol=0, atol=ATOL)
