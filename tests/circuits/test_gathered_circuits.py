"""The circuit of a question: what the single functions find, edges as ``effects_on`` has them, nothing twice."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pandas.testing import assert_frame_equal

import interpretune as it
from interpretune.analysis import AnalysisRunner, CircuitCfg, QuestionCfg
from interpretune.circuits import (
    Circuit,
    circuit_edges,
    circuit_of,
    faithfulness,
    gathering,
    judge_methods,
    measured_sets,
    shapley_values,
    smallest_set,
)
from interpretune.store import AnalysisStore
from interpretune.testing.tiny_models import tiny_llama, tiny_tokenizer
from tests.question_sessions import session_of
from tests.tiny_latents import RandomDictionary

ANSWERS = (" house", " tree")
ROWS = [it.PromptRow(f"{name} sees the red dog near the", ANSWERS) for name in ("Ada", "Bo", "Cleo")]
HELD_OUT = [it.PromptRow(f"{name} likes the old cat and the", ANSWERS) for name in ("Dan", "Eve", "Finn", "Gus")]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama().double().eval()


@pytest.mark.parametrize("latents", [True, False], ids=["latents", "model"])
def test_edges_are_effects_on_units_and_the_objective(model, latents):
    coders = [RandomDictionary(f"layers.{i}.resid_post", seed=i).double() for i in (0, 2)]
    units = coders if latents else [it.Heads(), it.Neurons(2, [1, 2, 3])]
    asked = {"objective": "log_prob", "value": "mean", "positions": "each"}
    effects = it.effects(model, tiny_tokenizer(), ROWS, units=units, **asked)
    found = circuit_edges(effects, 14)
    above = units[1:] if latents else [it.Heads(1), it.Heads(2), units[1]]
    on = it.effects_on(model, tiny_tokenizer(), ROWS, units=units, on=above, **asked, tolerance=0, gradient=True)
    top = on.top(10**6).set_index(["source", "target"])
    table = found.to_pandas().set_index(["source", "target"])
    wanted = top.loc[table.index]
    assert len(table) > 5
    assert table.effect.to_numpy() == pytest.approx(wanted.mean_effect.to_numpy(), abs=1e-10)
    assert table["size"].to_numpy() == pytest.approx(wanted.mean_size.to_numpy(), abs=1e-10)
    assert ((table.low <= table.effect + 1e-12) & (table.effect <= table.high + 1e-12)).all()
    inside = top.index.get_level_values(0).isin(found.units) & top.index.get_level_values(1).isin(found.units)
    assert inside.sum() == len(table)
    every = (
        on.to_pandas()
        .groupby(["units", "unit", "target_units", "target_unit"], observed=True)
        .gradient.sum(min_count=1)
    )
    slopes = dict(zip(zip(found.sources, found.targets, strict=True), found.gradient, strict=True))
    for (source, target), slope in slopes.items():
        key = (found.sets[source], found.ids[source], found.sets[target], found.ids[target])
        assert slope * on.store.n_examples == pytest.approx(every[key], abs=1e-9, nan_ok=True)
        assert np.isnan(slope) == (found.kinds[target] == "head")
        assert found.heights[source] < found.heights[target]
    nodes, exact = found.nodes().set_index("unit"), effects.top(14).set_index("name")
    assert nodes.effect.to_dict() == pytest.approx(exact.mean_effect.to_dict(), abs=1e-12)
    gradient = it.effects(model, tiny_tokenizer(), ROWS, units=units, **asked, method="gradient").top(10**6)
    assert nodes.gradient.to_dict() == pytest.approx(
        gradient.set_index("name").mean_effect.loc[nodes.index].to_dict(), abs=1e-12
    )


def test_a_circuit_is_what_the_functions_find_and_is_found_once(tmp_path, model, monkeypatch):
    effects = it.effects(model, tiny_tokenizer(), ROWS, units=it.Heads(), store=tmp_path / "store")
    settings = {"sets": ("sufficient", "necessary"), "pool": 6, "pairs": 3, "shapley": 2, "permutations": 3, "edges": 6}
    found = circuit_of(effects, held_out=HELD_OUT, **settings)
    other = it.effects(model, tiny_tokenizer(), ROWS, units=it.Heads())
    for part, alone in {
        "sufficient": smallest_set(other, "sufficient", pool=6, held_out=HELD_OUT),
        "necessary": smallest_set(other, "necessary", pool=6, held_out=HELD_OUT),
        "faithfulness": faithfulness(other, HELD_OUT),
        "methods": judge_methods(other, ["gradient"]),
        "edges": circuit_edges(other, 6),
    }.items():
        assert_frame_equal(getattr(found, part).to_pandas(), alone.to_pandas())
    assert (len(found.pairs.units), len(found.shapley.units), found.missing) == (3, 2, ())

    def refuse(*args: Any, **settings: Any) -> None:
        raise AssertionError("computed twice")

    with monkeypatch.context() as patched:
        patched.setattr(measured_sets, "ChangedBatch", refuse)
        patched.setattr(gathering, "edges_of", refuse)
        patched.setattr(type(effects.asked), "computed", refuse)
        again = circuit_of(effects, held_out=HELD_OUT, **settings)
        judge_methods(effects, ["exact", "gradient"])
        assert gathering.parts_of_circuit(effects, held_out=HELD_OUT, **settings) == []
        no_curves = gathering.parts_of_circuit(effects, held_out=HELD_OUT, **settings, sizes=())
        assert no_curves == ["sufficient", "necessary", "methods", "pairs", "shapley", "edges"]
        assert "edges" in gathering.parts_of_circuit(effects, held_out=HELD_OUT, **settings, share=0.5)
        with pytest.raises(AssertionError, match="computed twice"):
            circuit_of(effects, held_out=HELD_OUT[1:], **settings)
    assert repr(again) == repr(found) == repr(Circuit.open(tmp_path / "store"))
    smallest_set(effects, "sufficient", pool=6, share=0.3)  # takes the place of what was gathered
    assert repr(circuit_of(effects, held_out=HELD_OUT, **settings)) == repr(found)
    told = json.loads(effects.store.tables["circuit_edges"]["facts"][0].as_py())
    entry = effects.store.tables["circuit_edges"].to_pylist()[0]
    told["heights"] += [1]
    effects.store.add_table("circuit_edges", pa.Table.from_pylist([{**entry, "facts": json.dumps(told)}]))
    with pytest.raises(it.StoreError, match="table circuit_edges, cannot be read: nodes or edges have not"):
        Circuit.open(tmp_path / "store")


def test_a_circuit_in_a_run_is_counted_and_kept(tmp_path):
    session = session_of(tmp_path, {"validation": ROWS, "test": HELD_OUT}, eval_batch_size=2)
    circuit = CircuitCfg(held_out="test", pool=4, methods=["integrated_gradients"], draws=1, sizes=[1, 4])
    asked = {"heads": QuestionCfg(units={"heads": 0}, split="validation", circuit=circuit)}
    runner = AnalysisRunner(**session, root=tmp_path / "stores", limit=4)
    told = runner.dry_run(asked)["heads"]
    assert told.circuit == ("sufficient", "faithfulness", "methods", "edges")
    assert "and a circuit (sufficient, faithfulness, methods, edges)" in str(told)
    found = Circuit.of(runner.run(asked)["heads"])
    assert (found.faithfulness.rankings, len(found.faithfulness.model)) == (
        ("exact", "integrated_gradients", "random"),
        4,
    )
    assert runner.dry_run(asked)["heads"].circuit == ()
    assert isinstance(runner.run(asked)["heads"], AnalysisStore)


def test_units_that_do_nothing_have_no_circuit(model):
    alike = [it.PromptRow(row.prompt, row.answers, row.correct, corrupted=row.prompt) for row in ROWS]
    effects = it.effects(model, tiny_tokenizer(), alike, units=it.Heads(1), value="corrupted")
    found = circuit_of(effects, methods=())
    assert (found.sufficient, found.edges) == (None, None)
    assert bool(found)
    assert "none has an effect here" in repr(found)


@pytest.mark.parametrize(
    ("circuit", "words"),
    [
        ({"share": 0.0}, "share is 0.0; it must be above 0"),
        ({"share": 1.5}, "CircuitCfg.share is 1.5"),
        ({"sets": ["enough"]}, "CircuitCfg.sets is .*'enough'"),
        ({"methods": ["gradient", "gradient"]}, "CircuitCfg.methods is .*; name each once"),
        ({"budget": 0}, "CircuitCfg.budget is 0"),
    ],
    ids=["nothing", "more than all", "no such set", "twice", "no budget"],
)
def test_settings_of_circuits_that_are_wrong_are_refused(circuit, words):
    with pytest.raises(it.ConfigurationError, match=words):
        CircuitCfg(**circuit)
    with pytest.raises(it.ConfigurationError, match=r"circuit stands on exact effects, and the method is gradient"):
        QuestionCfg(units="heads", method="gradient", circuit=CircuitCfg())


def test_parts_of_other_settings_are_not_those_of_a_call(model):
    effects = it.effects(model, tiny_tokenizer(), ROWS, units=it.Heads(0))
    few: dict[str, Any] = {"sets": (), "methods": (), "edges": 0}
    assert circuit_of(effects, **few, pairs=3).pairs is not None
    assert circuit_of(effects, **few, shapley=2, permutations=1).pairs is None
    assert Circuit.of(effects.store).pairs is None
    shapley_values(effects, 3, permutations=1)  # in the place of what was gathered
    with_others = Circuit.of(effects.store)
    assert with_others.shapley is None
    assert "ShapleyValues in the store are of a later call" in repr(with_others)
