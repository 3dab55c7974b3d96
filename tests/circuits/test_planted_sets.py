"""Planted circuits, methods held against exact numbers, what is refused, and what the store of the effects keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from attrs import evolve
from scipy import stats
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import interpretune as it
from interpretune.circuits import (
    Faithfulness,
    JudgedMethods,
    PairEffects,
    SetEffects,
    ShapleyValues,
    SufficientSet,
    circuit_edges,
    faithfulness,
    judge_methods,
    measured_sets,
    pair_effects,
    set_effects,
    shapley_values,
    smallest_set,
)
from interpretune.circuits.share_of_pool import Whole
from interpretune.evidence.intervals import ratios_over_rows
from interpretune.store.tables import put_table
from interpretune.testing.tiny_models import VOCABULARY, tiny_llama, tiny_tokenizer
from tests.circuits.plain_sets import rows_of

ROWS, HELD_OUT = rows_of("asked"), rows_of("held out")


def gate(weight: float, bias: float) -> GPT2LMHeadModel:
    """A model of two blocks whose neurons 0 and 1 of the first are 1, and neuron 0 of the second reads their sum.

    It writes what it makes of it to the logit of " Kit", and nothing else does: there is no attention and no norm.
    """
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=32, n_embd=8, n_layer=2, n_head=2, activation_function="relu"
    )
    model = GPT2LMHeadModel(config).double().eval()
    model.lm_head.weight = nn.Parameter(torch.zeros(len(VOCABULARY), 8).double())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        first, second = (block.mlp for block in model.transformer.h)
        first.c_fc.bias[:2] = 1
        first.c_proj.weight[:2, 0] = 1
        second.c_fc.weight[0, 0], second.c_fc.bias[0] = weight, bias
        second.c_proj.weight[0, 1] = 1
        model.lm_head.weight[VOCABULARY["Kit"], 1] = 1
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    model.transformer.ln_f = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("weight", "bias", "single", "both"), [(1.0, -1.5, 0.5, 0.5), (-1.0, 0.5, 0.0, -0.5)], ids=["both", "neither"]
)
def test_in_a_planted_gate_the_interaction_is_the_whole_effect(weight, bias, single, both):
    rows = [it.PromptRow("Ada sees the", (" Kit", " Bo")), it.PromptRow("Bo likes a boat and", (" Kit", " Bo"))]
    effects = it.effects(gate(weight, bias), tiny_tokenizer(), rows, units=it.Neurons(0, [0, 1, 2]))
    names = [f"layers.0.mlp_act neuron {i}" for i in (0, 1)]
    pairs = pair_effects(effects, names)
    assert pairs.single == pytest.approx(np.full((2, 2), single), abs=1e-12)
    assert pairs.together == pytest.approx(np.full((1, 2), both), abs=1e-12)
    assert pairs.interactions == pytest.approx(np.full((1, 2), both - 2 * single), abs=1e-12)
    assert abs(pairs.to_pandas().interaction[0]) == pytest.approx(0.5)
    assert shapley_values(effects, names, permutations=100).values == pytest.approx(both / 2, abs=0.1)
    if single:
        needed, enough = (smallest_set(effects, kind, pool=names, width=2) for kind in ("necessary", "sufficient"))
        assert (len(needed.units), needed.proven, len(enough.units), enough.proven) == (1, True, 2, True)


@pytest.fixture(scope="module")
def effects() -> it.Effects:
    return asked()


def asked(**options: Any) -> it.Effects:
    given = {"units": [it.Heads(0), it.Neurons(2, range(12))], "value": "corrupted", **options}
    return it.effects(tiny_llama().double().eval(), tiny_tokenizer(), ROWS, **given)


def test_methods_are_held_against_exact_numbers(effects):
    exact = effects.to_pandas()
    other = exact.assign(effect=exact.effect * np.where(np.arange(len(exact)) % 3, 1.0, -0.5))
    by_unit = exact.groupby(["units", "unit"], observed=True).effect.mean().reset_index()
    opposite = by_unit.assign(effect=-by_unit.effect.pow(3))
    found = judge_methods(
        effects, {"gradient": "gradient", "other": other, "opposite": opposite}, held_out=HELD_OUT, top=4, share=0.5
    )
    table = found.to_pandas().set_index("method")
    assert table.loc["exact"].tolist()[:6] == pytest.approx([0, 0, 1, 1, 0, 1])
    assert table.loc["opposite"].tolist()[:4] == pytest.approx([1, 1, -1, 1])
    assert table.loc["opposite"].isna().tolist()[4:6] == [True, True]
    assert table.node_sign_errors["other"] == pytest.approx(np.mean(np.arange(len(exact)) % 3 == 0))
    assert table.node_rank_correlation["other"] == pytest.approx(stats.spearmanr(exact.effect, other.effect).statistic)
    means, others = (frame.groupby(["units", "unit"], observed=True).effect.sum() for frame in (exact, other))
    assert table.rank_correlation["other"] == pytest.approx(stats.spearmanr(means, others).statistic)
    wrong = means * others < 0
    assert table.sign_errors["other"] == pytest.approx(wrong.mean())
    assert table.wrong_sign["other"] == pytest.approx(means[wrong].abs().sum() / means.abs().sum())
    tops = [{*item.abs().sort_values(ascending=False).index[:4]} for item in (means, others)]
    assert table.top_overlap["other"] == len(tops[0] & tops[1]) / 4
    curves = faithfulness(effects, HELD_OUT, rankings={"exact": effects, "other": other}, draws=0)
    needed = curves.nodes_for(0.5).astype("Float64")
    assert table.nodes_for_50[["exact", "other"]].tolist() == pytest.approx(needed.fillna(np.nan).tolist(), nan_ok=True)
    reached = curves.to_pandas().query("nodes == 4").faithfulness
    assert table.faithfulness_of_4[["exact", "other"]].tolist() == pytest.approx(reached.tolist(), nan_ok=True)


def test_left_out_effects_are_not_compared():
    few = asked(budget=7)
    gradient = asked(method="gradient").to_pandas()
    judged = judge_methods(few, {"gradient": gradient}).to_pandas().set_index("method")
    exact = few.to_pandas()
    joined = exact.merge(gradient, on=["row", "position", "units", "unit"])
    assert len(exact) == len(joined) == 7
    expected = stats.spearmanr(joined.effect_x, joined.effect_y).statistic
    assert judged.node_rank_correlation["gradient"] == pytest.approx(expected)


def test_no_share_is_told_of_next_to_nothing(effects):
    swapped = [it.PromptRow(row.prompt, row.answers, 1 - row.correct, row.corrupted) for row in HELD_OUT]
    found = faithfulness(effects, HELD_OUT + swapped)  # what one row says for an answer, the other says against it
    assert "next to nothing" in found.undefined
    assert found.undefined in repr(found)
    assert found.to_pandas().faithfulness.isna().all()
    assert found.nodes_for().isna().all()
    both = [it.PromptRow(row.prompt, row.answers, i, row.corrupted) for row in ROWS for i in (0, 1)]
    model = effects.asked.backend.model
    with pytest.raises(it.AnalysisError, match="There is nothing of which a set could reach a share"):
        smallest_set(it.effects(model, tiny_tokenizer(), both, units=it.Heads(0), value="corrupted"))


def test_shares_are_ratios_of_means_whatever_their_sign():
    clean, nothing, some = np.random.default_rng(0).normal([[3.0], [0.0], [2.0]], 1.0, (3, 12))
    found, other = Whole(clean, nothing).shares(some[None]), Whole(-clean, -nothing).shares(-some[None])
    assert found.values[0] == pytest.approx((some.mean() - nothing.mean()) / (clean.mean() - nothing.mean()))
    assert found.low[0] < found.values[0] < found.high[0]
    assert [*other.values, *other.low, *other.high] == pytest.approx([*found.values, *found.low, *found.high])
    assert not Whole(clean, nothing).near_zero
    assert "in which 0 lies" in Whole(clean, clean + some - 2).near_zero


def test_rows_that_pull_down_the_whole_count_for_the_interval():
    found = ratios_over_rows(np.array([[6.0], [1.0], [1.0]]), np.array([9.0, -1.0, -1.0]))
    assert found.values[0] == pytest.approx(8 / 7)
    assert np.isfinite([found.low[0], found.high[0]]).all()


def test_a_figure_has_all_rankings(effects):
    frame = effects.to_pandas()
    found = faithfulness(effects, HELD_OUT, rankings={f"ranking {i}": frame for i in range(12)}, sizes=[1], draws=0)
    assert len(found.plot().data) == 24


def test_a_budget_that_ends_too_early_is_told():
    effects = asked(objective="kl", value="zero")
    found = smallest_set(effects, share=1.0, pool=8, budget=6)
    assert (found.evaluations, found.reached, found.proven, len(found.units)) == (6, False, False, 1)
    assert "not reached" in repr(found)
    assert "no share that could be told on held-out rows" in repr(evolve(found, held_out=np.ones((3, 4))))
    nothing = smallest_set(effects, pool=8, budget=1)
    assert (nothing.units, len(nothing.path), nothing.shares().share[0]) == ((), 0, 0.0)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda e: smallest_set(e, budget=0), "budget is 0"),
        (lambda e: smallest_set(e, share=1.2), "share is 1.2"),
        (lambda e: smallest_set(e, "enough"), "There is no set that is 'enough'"),
        (lambda e: smallest_set(e, held_out=HELD_OUT + ROWS), "3 of 7 held-out rows have a prompt of the question"),
        (lambda e: faithfulness(e, ROWS), "3 of 3 held-out rows"),
        (lambda e: faithfulness(e, []), "held_out is empty"),
        (lambda e: faithfulness(e, ["Gus and"], answers=(" Kit", " Bo")), "row 0 has no corrupted prompt"),
        (lambda e: faithfulness(e, HELD_OUT, sizes=[17]), "whole numbers from 0 to 16"),
        (lambda e: faithfulness(e, HELD_OUT, sizes=3), "sizes is 3; give a list of whole numbers"),
        (lambda e: faithfulness(e, HELD_OUT, sizes=[1, "all"]), "sizes is .1, 'all'.; give a list"),
        (
            lambda e: judge_methods(e, {"few": asked(units=[it.Heads(0, [0]), it.Neurons(2, range(12))])}),
            "other units of the same unit sets are chosen",
        ),
        (lambda e: judge_methods(asked(value="mean", mean_over=["Bo"]), {"o": asked(value="mean")}), "over other rows"),
        (lambda e: faithfulness(e, HELD_OUT, rankings=["lens"]), "There is no method 'lens'"),
        (lambda e: faithfulness(e, HELD_OUT, rankings=[e, "exact"]), "Two rankings are called 'exact'"),
        (lambda e: faithfulness(e, HELD_OUT, rankings={"random": e}), "Two rankings are called 'random'"),
        (lambda e: judge_methods(e, {"mine": pd.DataFrame({"unit": [1]})}), "'mine' is the columns unit"),
        (lambda e: judge_methods(e, {"mine": e.to_pandas().assign(effect=np.nan)}), "NaN or infinite"),
        (lambda e: judge_methods(e, 5), "A int has no name"),
        (lambda e: faithfulness(e, HELD_OUT, rankings=[], draws=0), "There is nothing to draw"),
        (lambda e: judge_methods(e, {"other": asked(value="zero")}), "another question: its value is 'zero'"),
        (lambda e: circuit_edges(asked(method="gradient")), "these are of the method gradient"),
        (lambda e: judge_methods(asked(method="gradient")), "these are of the method gradient"),
        (lambda e: pair_effects(e, ["layers.0.attn_z head 9"]), "There is no unit 'layers.0.attn_z head 9'"),
        (lambda e: pair_effects(e, [3, 5]), "There is no unit 3 among"),
        (lambda e: pair_effects(e, 1), "A pair needs two units"),
        (lambda e: set_effects(e, [[]]), "a set is empty"),
        (lambda e: shapley_values(e, [("layers.0.attn_z", 1)] * 2), "A unit is named twice"),
        (lambda e: shapley_values(e, permutations=0), "permutations is 0"),
        (lambda e: shapley_values(e, seed=-1), "seed is -1"),
        (lambda e: pair_effects(it.Effects(e.store)), "not asked in this process"),
    ],
)
def test_what_cannot_be_asked_is_refused(effects, call, told):
    with pytest.raises(it.InterpretuneError, match=told):
        call(effects)


def test_results_are_kept_in_the_store_of_the_effects(tmp_path, monkeypatch):
    effects = asked(store=tmp_path / "store", objective="kl", value="zero")
    calls: dict[Any, Any] = {
        SetEffects: lambda e: set_effects(e, [["layers.0.attn_z head 1", "layers.0.attn_z head 2"]]),
        PairEffects: lambda e: pair_effects(e, 4),
        ShapleyValues: lambda e: shapley_values(e, 3, permutations=1),
        SufficientSet: lambda e: smallest_set(e, pool=3),
        Faithfulness: lambda e: faithfulness(e, HELD_OUT, rankings=[e], sizes=[1, 2]),
        JudgedMethods: lambda e: judge_methods(e, [asked(method="integrated_gradients", objective="kl", value="zero")]),
    }
    made = {kind: call(effects) for kind, call in calls.items()}
    for kind, result in made.items():
        pd.testing.assert_frame_equal(kind.open(tmp_path / "store").to_pandas(), result.to_pandas())
        assert repr(result).split("\n")[0] in str(result)
        assert "<table" in result._repr_html_()
        if hasattr(result, "plot"):
            assert len(result.plot().data)
    with monkeypatch.context() as patch:
        patch.setattr(measured_sets, "ChangedBatch", None)
        for call in calls.values():
            call(effects)
        with pytest.raises(TypeError):
            pair_effects(effects, 3)
    other = asked(store=tmp_path / "other", objective="kl")
    put_table(tmp_path / "other", "circuit_pairs", effects.store.tables["circuit_pairs"])
    with pytest.raises(it.StoreError, match="circuit_pairs, is of other effects"):
        PairEffects.open(tmp_path / "other")
    with pytest.raises(it.StoreError, match="holds no ShapleyValues"):
        ShapleyValues.of(other.store)
    assert pair_effects(other, 4).units != ()
