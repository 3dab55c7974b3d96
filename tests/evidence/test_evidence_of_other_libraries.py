"""Evidence of models of another library is that of the same model of transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import interpretune as it
from interpretune.testing.tiny_models import tiny_gpt2, tiny_tokenizer
from tests.evidence.test_evidence_in_stores import FEW, HELD_OUT, ROWS
from tests.tiny_latents import RandomDictionary
from tests.tlens.test_above_blocks import backend_on


def test_evidence_of_another_library_is_the_same(llama_folder: Path) -> None:
    model: Any = tiny_gpt2().eval()
    units = [it.Heads(1), RandomDictionary("layers.1.resid_post", d_sae=6)]

    def told(asked: Any) -> it.Evidence:
        effects = it.effects(asked, tiny_tokenizer(), ROWS, units=units)
        return it.evidence_of(effects, held_out=HELD_OUT[:1], **{**FEW, "cards": 3})

    ours, plain = told(backend_on("hooked", copy.deepcopy(model), llama_folder)), told(model)
    assert repr(ours.held_out) == repr(plain.held_out)
    assert ours.steering == plain.steering
    assert [card.name for card in ours.cards] == [card.name for card in plain.cards]
    assert {card.kind for card in ours.cards} == {"head", "latent"}
    for one, other in zip(ours.cards, plain.cards, strict=True):
        for name in ("promoted_total", "suppressed_direct"):
            values = [[item.value for item in getattr(card, name)] for card in (one, other)]
            assert values[0] == pytest.approx(values[1], abs=1e-3)
        doses = [[dose.objective for dose in card.doses] for card in (one, other)]
        assert doses[0] == pytest.approx(doses[1], abs=1e-3)
        assert one.prompts[0].activations == pytest.approx(other.prompts[0].activations, abs=1e-3)
