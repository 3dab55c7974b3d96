"""Evidence in the store of its effects: whole parts, read without a model, never that of other effects."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attrs import evolve
from transformers import MambaConfig, MambaForCausalLM

import interpretune as it
from interpretune.analysis import AnalysisRunner, EvidenceCfg, QuestionCfg
from interpretune.evidence import gathering
from interpretune.evidence.chosen import active_units, others, top_units
from interpretune.store.tables import put_table
from interpretune.testing.tiny_models import NAMES, NOUNS, tiny_llama, tiny_tokenizer
from tests.many_threads import run_together
from tests.question_sessions import session_of
from tests.tiny_latents import RandomDictionary

ANSWERS = (" house", " tree")
ROWS = [
    it.PromptRow("Ada sees the red dog near the", ANSWERS, 1, "Ada sees the old dog near the"),
    it.PromptRow("Bo likes a boat and the", ANSWERS, 0, "Bo likes a lamp and the"),
]
HELD_OUT = [
    it.PromptRow("Max paints the small cat near the", ANSWERS, 1, "Max paints the large cat near the"),
    it.PromptRow("Nora buys a hat and the", ANSWERS, 0),
]
FEW: dict[str, Any] = {"top": 2, "cards": 1, "steer": 1, "new_tokens": 2}


def asked(**options: Any) -> it.Effects:
    return it.effects(tiny_llama(), tiny_tokenizer(), ROWS, **{"units": it.Heads(1), **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evidence") / "store"


@pytest.fixture(scope="module")
def gathered(folder: Path) -> it.Evidence:
    return it.evidence_of(asked(store=folder), held_out=HELD_OUT, **FEW)


def test_evidence_is_read_as_it_was_gathered(gathered, folder):
    assert repr(it.Evidence.open(folder)) == repr(gathered)  # NaN is unlike itself
    assert gathered.held_out is not None
    assert [(item.name, item.control) for item in gathered.held_out.changes] == [("ablated", False), ("ablated", True)]
    assert [len(gathered.cards), len(gathered.steering)] == [1, 2]
    assert repr(it.evidence_of(asked(), held_out=HELD_OUT, **FEW)) == repr(gathered)
    assert it.Evidence.of(asked().store) == it.Evidence()


def test_parts_are_kept_and_gathered_anew_one_by_one(gathered, folder, monkeypatch):
    made = []
    steered = gathering.steered

    def fails(*args: Any) -> Any:
        made.append("steering")
        raise KeyboardInterrupt

    for name, found in {"held_out_proof": gathered.held_out, "cards_of": gathered.cards}.items():
        monkeypatch.setattr(gathering, name, lambda *_, name=name, found=found: made.append(name) or found)
    monkeypatch.setattr(gathering, "steered", fails)
    it.evidence_of(asked(store=folder), held_out=HELD_OUT, **FEW)
    assert made == []
    with pytest.raises(KeyboardInterrupt):
        it.evidence_of(asked(store=folder), held_out=HELD_OUT, **{**FEW, "new_tokens": 3})
    assert made == ["steering"]
    assert repr(it.Evidence.open(folder)) == repr(gathered)
    monkeypatch.setattr(gathering, "steered", steered)
    it.evidence_of(asked(store=folder), held_out=HELD_OUT[:1], **{**FEW, "new_tokens": 3, "top": 2, "cards": 0})
    assert made == ["steering", "held_out_proof"]


def test_two_threads_get_the_evidence_that_each_asks_for(tmp_path):
    effects = asked(store=tmp_path / "store")

    def asks(cards: int) -> Callable[[], list[int]]:
        return lambda: [len(it.evidence_of(effects, **{**FEW, "steer": 0, "cards": cards}).cards) for _ in range(3)]

    assert run_together(asks(1), asks(2)) == [[1, 1, 1], [2, 2, 2]]


def test_evidence_of_other_effects_is_refused(gathered, folder, tmp_path):
    other = asked(store=tmp_path / "other", value=0.5)
    put_table(tmp_path / "other", "evidence_cards", it.Effects.open(folder).store.tables["evidence_cards"])
    with pytest.raises(it.StoreError, match="evidence_cards, is of other effects"):
        it.Evidence.open(tmp_path / "other")
    [card] = it.evidence_of(other, **FEW).cards
    assert card != gathered.cards[0]
    place = tmp_path / "other" / "tables" / "evidence_cards.parquet"
    pq.write_table(pq.read_table(place), place, compression="none")
    with pytest.raises(it.StoreError, match="cannot be read"):
        it.Evidence.open(tmp_path / "other")
    assert it.evidence_of(other, **FEW).cards == (card,)


FORGED: dict[str, Callable[[Any], Any]] = {
    "a str is expected": lambda card: card.update(url={}),
    "a prompt has 7 tokens and 6 activations": lambda card: card["prompts"][0]["activations"].pop(),
    "9 is none of 2 answers": lambda card: card["prompts"][0].update(correct=9),
    "-3 is no number of rows": lambda card: card["counts"].__setitem__(0, -3),
    "21 ends are none of a histogram of 21 bins": lambda card: card["counts"].append(1),
    "7 is no share": lambda card: card.update(share_active=7),
    "2 to 1 is no interval": lambda card: card.update(low=2, high=1),
    "no model gives a number such as 1e.200": lambda card: card.update(mean_effect=1e200),
    "the form 0, and this version reads the form 3": lambda _: None,
}


def test_facts_that_cannot_be_are_refused_and_gathered_anew(tmp_path):
    effects = asked(store=tmp_path / "store")
    [card] = it.evidence_of(effects, **{**FEW, "steer": 0}).cards
    [entry] = effects.store.tables["evidence_cards"].to_pylist()
    for told, forge in FORGED.items():
        [facts] = json.loads(entry["facts"])
        forge(facts)
        forged = {**entry, "facts": json.dumps([facts]), "form": 0 if "form 0" in told else entry["form"]}
        put_table(tmp_path / "store", "evidence_cards", pa.Table.from_pylist([forged]))
        with pytest.raises(it.StoreError, match=f"cannot be read: .*{told}"):
            it.Evidence.open(tmp_path / "store")
    assert it.evidence_of(effects, **{**FEW, "steer": 0}).cards == (card,)


def test_proof_that_lacks_what_judges_it_is_none(gathered):
    for impossible in ({"judged": "corrupted"}, {"rows": 0}):
        with pytest.raises(ValueError, match="is no set of changes|too few"):
            evolve(gathered.held_out, **impossible)


def test_texts_end_where_the_model_ends_them():
    effects = asked()
    plain = it.evidence_of(effects, top=1, cards=0, steer=1, new_tokens=4).steering[0].plain
    assert effects.asked is not None
    first, second = effects.asked.tokenizer(plain, add_special_tokens=False)["input_ids"][:2]
    assert first != second
    config = effects.asked.backend.model.generation_config
    ends, config.eos_token_id = config.eos_token_id, [config.eos_token_id, second]
    try:
        ended = it.evidence_of(effects, top=1, cards=0, steer=1, new_tokens=4).steering[0].plain
    finally:
        config.eos_token_id = ends
    assert ended == effects.asked.tokenizer.decode([first])


def test_what_cannot_be_gathered_is_refused(folder, gathered):
    with pytest.raises(it.AnalysisError, match="not asked in this process"):
        it.evidence_of(it.Effects.open(folder))
    straight = it.direct_logit_attribution(tiny_llama(), tiny_tokenizer(), ROWS)
    with pytest.raises(it.AnalysisError, match="go straight to the logits"):
        it.evidence_of(straight)
    with pytest.raises(it.DataError, match=r"1 of 2 held-out rows have a prompt of the question, first row 1"):
        it.evidence_of(asked(), held_out=[HELD_OUT[0], ROWS[0]])
    with pytest.raises(it.DataError, match="Held-out row 0 has 1 answers"):
        it.evidence_of(asked(), held_out=[it.PromptRow("Max paints", (" house",))])
    with pytest.raises(it.ConfigurationError, match="top is 0"):
        it.evidence_of(asked(), top=0)


def test_units_of_the_model_and_latents_change_together():
    place = "layers.1.resid_post"
    units = [RandomDictionary(place, d_sae=5, url="https://x/{latent}"), it.Vector(place), it.Heads(0, [0])]
    found = it.evidence_of(asked(units=units), held_out=HELD_OUT, top=9, cards=9, steer=1, new_tokens=1)
    assert {card.kind for card in found.cards} == {"latent", "vector", "head"}
    assert {card.url for card in found.cards if card.kind != "latent"} == {None}
    assert {card.url for card in found.cards} >= {f"https://x/{card.unit}" for card in found.cards if card.url}
    assert found.held_out is not None
    assert [item.control for item in found.held_out.changes] == [False]


@pytest.mark.filterwarnings("ignore:MambaForCausalLM has an attention of its own")
def test_models_without_a_last_norm_or_a_cache_get_evidence():
    tokenizer = tiny_tokenizer()
    model = MambaForCausalLM(MambaConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, state_size=2))
    effects = it.effects(model.eval(), tokenizer, ROWS, units=it.Vector("layers.0.resid_post"))
    found = it.evidence_of(effects, top=1, cards=1, steer=1, new_tokens=2)
    assert found.cards[0].promoted_total
    assert found.cards[0].promoted_direct == ()
    assert len(found.steering) == 2


def test_control_units_are_none_of_the_top():
    effects = asked()
    assert effects.asked is not None
    for number in (1, 2, 3):
        top = top_units(effects.asked, effects, number)
        drawn = others(active_units(effects), top, np.random.default_rng(0))
        assert len(drawn) == min(number, 4 - number)
        assert not {item.name for item in drawn} & {item.name for item in top}


def test_rows_without_answers_get_cards_without_ratings():
    rows = [it.PromptRow("Ada sees the red dog"), it.PromptRow("Bo likes a boat")]
    effects = it.effects(tiny_llama(), tiny_tokenizer(), rows, units=it.Heads(1), objective="loss", positions="each")
    found = it.evidence_of(effects, **FEW)
    assert found.held_out is None
    [card] = found.cards
    assert card.changed == ()
    assert card.doses[0].share_correct != card.doses[0].share_correct
    assert card.doses[0].objective != card.doses[2].objective


def test_a_random_model_and_nonsense_rows_prove_nothing():
    draw = random.Random(0)
    texts = [" ".join(draw.sample(NOUNS + NAMES, 4)) for _ in range(48)]
    rows = [it.PromptRow(text, ANSWERS, draw.randrange(2)) for text in texts]
    effects = it.effects(tiny_llama(), tiny_tokenizer(), rows[:16], units=it.Neurons(1), batch_size=16)
    found = it.evidence_of(effects, held_out=rows[16:], top=3, cards=3, steer=0)
    assert found.held_out is not None
    ablated, control = found.held_out.changes
    assert 0.2 < found.held_out.share_correct < 0.8
    assert ablated.low <= control.high
    assert found.steering == ()


def test_a_run_gathers_evidence_after_the_effects(tmp_path):
    session = session_of(tmp_path, {"train": ROWS, "test": HELD_OUT[:1]})
    evidence = EvidenceCfg(held_out="test", **FEW)
    cfg = QuestionCfg(units={"heads": 1}, split="train", evidence=evidence, batch_size=8)
    [store] = AnalysisRunner(**session, root=tmp_path / "stores").run({"heads": cfg}).values()
    module, tokenizer = session.module, session.datamodule.tokenizer
    effects = it.effects(module.backend, tokenizer, ROWS, units=it.Heads(1))
    assert store.folder is not None
    assert repr(it.Evidence.open(store.folder)) == repr(it.evidence_of(effects, held_out=HELD_OUT[:1], **FEW))
