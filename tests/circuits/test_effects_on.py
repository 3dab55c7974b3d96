"""Effects on units equal those of whole forwards: at the changed token, across tokens, and past dictionaries."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from attrs import evolve
from torch import Tensor

import interpretune as it
from interpretune.analysis import HuggingFaceBackend, ModelInputs, activation_name, gradient_edges
from interpretune.circuits.node_question import NodeQuestion
from interpretune.errors import ReplayRefusedError
from interpretune.testing.tiny_models import tiny_tokenizer
from tests.circuits.plain_nodes import Place, PlainNodes, effects_in_loops
from tests.cross_layer import Linear, load_clt, random, with_clt, write_clt
from tests.many_threads import run_together, switching_often
from tests.questions.plain_loops import Coder
from tests.tiny_architectures import BLOCKS, NEURONS, WIDTH, make_model

PROMPTS = [("Ada sees Bo and Cleo near", "Bo and"), ("who was", "was"), ("June with Kit <eos> has", "Kit <eos>")]
ANSWERS = (" Kit", " Lena")
HEADS = torch.arange(WIDTH).reshape(4, -1).tolist()


class LinearCoder(Coder):
    """One that says that its decoder is linear."""

    def decoder_rows(self, latents: Tensor) -> Tensor:
        return self.parts[2][latents]


class TopCoder(Coder):
    """One whose three largest latents are active: where one goes, another comes."""

    def encode(self, activations: Tensor) -> Tensor:
        latents = super().encode(activations) + 0.1
        return torch.zeros_like(latents).scatter(-1, *reversed(latents.topk(3)))


def coder(kind: type[Coder], name: str, layer: int, reads: str, writes: str = "", **flags: bool) -> Coder:
    points = (f"layers.{layer}.{part}" for part in (reads, writes or reads))
    return kind(name, *points, torch.float64, flags.get("error", False), flags.get("skips", False))


@cache
def model_of(kind: str) -> Any:
    return make_model(kind)


def rows_of(prompts: Any = PROMPTS) -> list[it.PromptRow]:
    return [it.PromptRow(prompt, ANSWERS, i % 2, spans={"what": span}) for i, (prompt, span) in enumerate(prompts)]


def linear_model() -> Any:
    """A GPT-2 without attention, norms and nonlinearity."""
    model = make_model("gpt2")
    model.transformer.ln_f = torch.nn.Identity()
    for block in model.transformer.h:
        block.attn.c_proj.weight.data.zero_()
        block.ln_1 = block.ln_2 = block.mlp.act = torch.nn.Identity()
    return model


def single(item: Coder, layer: int, only: Any = range(12)) -> Place:
    return Place(item.name, layer, item, {unit: [unit] for unit in only})


def part(layer: int, name: str, members: dict[int, list[int]]) -> Place:
    return Place(f"layers.{layer}.{name}", layer, name, members)


def units_of(which: str) -> dict[str, Any]:
    """Units, targets, dictionaries with their layers, and the same for the loops."""
    low = coder(LinearCoder, "low", 0, "resid_post", error=which == "errors")
    mid = coder(Coder, "mid", 1, "mlp_in", "mlp_out", error=which != "errors", skips=True)
    high = coder(TopCoder, "high", 2, "resid_post", error=which == "errors")
    coders = [(low, 0), (mid, 1), (high, 2)]
    above = [single(mid, 1), single(high, 2)]
    neurons = {unit: [unit] for unit in range(NEURONS)}
    whole = {0: list(range(WIDTH))}
    if which in ("latents", "errors"):
        return {
            "units": [it.Latents(low, (1, 4, 7)), it.Latents(mid, (0, 2, 3))],
            "on": [mid, high, it.Vector("layers.3.attn_out")],
            "coders": coders,
            "sources": [single(low, 0, (1, 4, 7)), single(mid, 1, (0, 2, 3))],
            "targets": [*above, part(3, "attn_out", whole)],
        }
    sources = [part(0, "attn_z", {0: HEADS[0], 3: HEADS[3]}), part(1, "mlp_act", {0: [0], 30: [30]})]
    if which == "mixed":
        return {
            "units": [it.Heads(0, [0, 3]), it.Neurons(1, [0, 30])],
            "on": [low, it.Latents(high, (0, 5, 6))],
            "coders": [(low, 0), (high, 2)],
            "sources": sources,
            "targets": [single(low, 0), single(high, 2, (0, 5, 6))],
        }
    return {
        "units": [it.Heads(0, [0, 3]), it.Neurons(1, [0, 30])],
        "on": [
            it.Neurons(1, range(NEURONS)),
            it.Heads(2),
            it.Vector("layers.1.mlp_out"),
            it.Vector("layers.3.resid_post"),
        ],
        "coders": [],
        "sources": sources,
        "targets": [
            part(1, "mlp_act", neurons),
            part(2, "attn_z", dict(enumerate(HEADS))),
            part(1, "mlp_out", whole),
            part(3, "resid_post", whole),
        ],
    }


def difference(
    kind: str,
    which: str,
    side: str = "left",
    *,
    positions: str = "answer",
    at: str = "same",
    held: Any = None,
    prompts: Any = PROMPTS,
    **options: Any,
) -> float:
    """Largest difference between ``effects_on`` and loops, of effects on units and on the objective."""
    case, tokenizer, model = units_of(which), tiny_tokenizer(side), model_of(kind)
    found = it.effects_on(
        model,
        tokenizer,
        rows_of(prompts),
        units=case["units"],
        on=case["on"],
        positions=positions,
        at=at,
        direct=held is not None,
        tolerance=0,
        batch_size=2,
        **options,
    )
    tokens = [tokenizer(prompt)["input_ids"] for prompt, _ in prompts]
    spans = [[i for i, word in enumerate(["", *prompt.split()]) if word in span.split()] for prompt, span in prompts]
    places = {
        "answer": [[len(row) - 1] for row in tokens],
        "each": [list(range(len(row))) for row in tokens],
        "what": spans,
        "same": None,
    }
    nodes = PlainNodes(model, BLOCKS, tokenizer.all_special_ids, case["coders"])
    wanted = effects_in_loops(nodes, tokens, case["sources"], case["targets"], places[positions], places[at], held)
    ids = [tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in ANSWERS]
    expected = {key: value for key, value in wanted.items() if "logits" not in key and value}
    got = {tuple(line[:7]): line[7] for line in in_key_order(found.to_pandas())}
    assert max(map(abs, got.values())) > 1e-2
    assert {key[2] for key in got} == {source.name for source in case["sources"]}
    assert {key[5] for key in got} == {target.name for target in case["targets"]}
    worst = max(abs(got.get(key, 0.0) - expected.get(key, 0.0)) for key in {*got, *expected})
    for row, position, units, unit, effect in found.on_objective.to_pandas().iloc[:, :5].itertuples(index=False):
        lost = wanted[row, position, units, unit, "logits"]
        worst = max(worst, abs(effect - (lost[ids[row % 2]] - lost[ids[1 - row % 2]]).item()))
    return worst


def in_key_order(table: Any) -> Any:
    columns = ["row", "position", "units", "unit", "target_position", "target_units", "target_unit", "effect"]
    return table[columns].itertuples(index=False, name=None)


@pytest.mark.parametrize(
    ("kind", "which", "side"),
    [
        ("llama", "latents", "left"),
        ("gpt2", "errors", "right"),
        ("gemma3", "plain", "right"),
        ("qwen3", "mixed", "left"),
    ],
)
def test_effects_at_the_changed_token_equal_loops(kind: str, which: str, side: str) -> None:
    assert difference(kind, which, side) < 1e-10


def test_effects_of_one_row_equal_loops() -> None:
    assert difference("llama", "mixed", prompts=PROMPTS[2:], row_budget=3) < 1e-10


@pytest.mark.parametrize(
    ("kind", "which", "side", "positions", "at"),
    [
        ("llama", "latents", "right", "each", "each"),
        ("gpt2", "errors", "left", "what", "answer"),
        ("gemma3", "plain", "left", "what", "each"),
        ("qwen3", "mixed", "right", "each", "what"),
        ("gemma3", "errors", "right", "each", "same"),
    ],
)
def test_effects_on_later_tokens_equal_loops(kind: str, which: str, side: str, positions: str, at: str) -> None:
    """The texts are longer than the sliding window of Gemma 3."""
    assert difference(kind, which, side, positions=positions, at=at) < 1e-10


@pytest.mark.parametrize(
    ("kind", "which", "side", "where"),
    [
        ("llama", "latents", "left", {}),
        ("gpt2", "errors", "right", {"positions": "each", "at": "each"}),
        ("gemma3", "mixed", "left", {"positions": "what", "at": "each"}),
    ],
)
def test_direct_effects_equal_loops_in_which_dictionaries_are_held(
    kind: str, which: str, side: str, where: dict[str, Any]
) -> None:
    if which == "mixed":
        held = {"layers.0.attn_z": ["low", "high"], "layers.1.mlp_act": ["high"]}
    else:
        held = {"low": ["mid", "high"], "mid": ["high"]}
    assert difference(kind, which, side, held=held, **where) < 1e-10


@pytest.mark.parametrize("where", [{}, {"positions": "each", "at": "each", "held": True}])
def test_effects_without_replays_equal_loops(where: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: HuggingFaceBackend) -> None:
        raise ReplayRefusedError("It cannot be.")

    monkeypatch.setattr(HuggingFaceBackend, "create_replay", refused)
    if where.get("held"):
        where = {**where, "held": {"low": ["mid", "high"], "mid": ["high"]}}
    with pytest.warns(UserWarning, match="It cannot be"):
        assert difference("llama", "latents", **where) < 1e-10


def called(which: str = "latents", **options: Any) -> it.NodeEffects:
    case = units_of(which)
    given = {"units": case["units"], "on": case["on"], "batch_size": 2, **options}
    return it.effects_on(model_of("llama"), tiny_tokenizer(), rows_of(), **given)


def test_direct_effects_across_a_residual_dictionary_are_zero() -> None:
    """Beside it, where the dictionary stands in a sublayer, some remain."""
    found = called(direct=True, tolerance=1e-12)
    effects = found.to_pandas()
    assert {*effects.target_units} == {"mid", "high"}
    assert found.on_objective.to_pandas().effect.abs().max() < 1e-12
    assert effects.query("units == 'low' and target_units == 'high'").effect.abs().max() > 1e-2
    assert called().to_pandas().query("target_units == 'layers.3.attn_out'").effect.abs().max() > 1e-2


@pytest.mark.parametrize("where", [{}, {"positions": "what", "at": "each"}])
def test_direct_effects_hold_the_latents_of_a_cross_layer_transcoder(where: dict[str, str], tmp_path: Path) -> None:
    folder = write_clt(tmp_path / "clt", BLOCKS, WIDTH, 12)
    parts, model, tokenizer = load_clt(folder), model_of("llama"), tiny_tokenizer()
    asked = {"units": it.Latents(parts[0], (0, 1, 2)), "on": parts[1:], "direct": True, "tolerance": 0}
    found = it.effects_on(model, tokenizer, rows_of(), **asked, **where)
    effects, objective = found.to_pandas(), found.on_objective.to_pandas()
    assert {*effects.target_units} == {"clt 1", "clt 2", "clt 3"}
    for line in objective.itertuples():
        tokens, clean = tokenizer(PROMPTS[line.row][0], return_tensors="pt")["input_ids"][0], {}

        def keep(name: str, latents: Tensor, clean: dict[str, Tensor] = clean) -> Tensor:
            clean[name] = latents.clone()
            return latents

        expected = with_clt(model, tokens, folder, keep, error=False)[-1]
        now: dict[str, Tensor] = {}

        def hold(name: str, latents: Tensor, line: Any = line, clean: Any = clean, now: Any = now) -> Tensor:
            now[name] = latents.clone()
            if name != "layers.0.resid_mid":
                return clean[name]
            latents[0, line.position, line.unit] = 0
            return latents

        lost = expected - with_clt(model, tokens, folder, hold, error=False)[-1]
        ids = [tokenizer(answer, add_special_tokens=False)["input_ids"][0] for answer in ANSWERS]
        sign = 1 if line.row % 2 == 0 else -1
        assert line.effect == pytest.approx(sign * (lost[ids[0]] - lost[ids[1]]).item(), abs=1e-10)
        mine = effects[(effects.row == line.row) & (effects.position == line.position) & (effects.unit == line.unit)]
        assert mine.effect.abs().max() > 1e-3
        for one in mine.itertuples():
            name = f"layers.{one.target_units[-1]}.resid_mid"
            change = (clean[name] - now[name])[0, one.target_position, one.target_unit]
            assert one.effect == pytest.approx(change.item(), abs=1e-10)
    for item in parts:
        item.use_error_term = True
    with pytest.raises(it.AnalysisError, match="cannot hold the error term of 'clt 1'"):
        it.effects_on(model, tokenizer, rows_of(), **asked)


@pytest.mark.parametrize("direct", [False, True])
def test_in_a_linear_model_effects_gradients_and_products_of_weights_are_equal(direct: bool) -> None:
    model = linear_model()
    low, mid = (coder(LinearCoder, name, i, "mlp_out", error=True) for i, name in enumerate(("low", "middle")))
    for item in (low, mid):
        item.encode = lambda activations, item=item: activations @ item.parts[0]  # type: ignore[method-assign]
    asked = {"units": [it.Latents(low, (2, 5)), it.Neurons(0, [3])], "on": [it.Neurons(1, [0, 7]), it.Neurons(2, [4])]}
    asked["on"].append(it.Latents(mid, 6))
    found = it.effects_on(
        model, tiny_tokenizer(), rows_of(), **asked, tolerance=1e-12, gradient=True, direct=direct
    ).to_pandas()
    blocks = model.transformer.h
    written = {"low": low.parts[2], "layers.0.mlp_act": blocks[0].mlp.c_proj.weight}
    through = blocks[1].mlp.c_fc.weight @ blocks[1].mlp.c_proj.weight
    passing = torch.eye(WIDTH, dtype=torch.float64) + (0 if direct else through)
    read = {
        "layers.1.mlp_act": blocks[1].mlp.c_fc.weight,
        "layers.2.mlp_act": passing @ blocks[2].mlp.c_fc.weight,
        "middle": through @ mid.parts[0],
    }
    if direct:  # the dictionary that the neurons write through is held
        written["layers.0.mlp_act"] = written["layers.0.mlp_act"] * 0
    units = it.effects(model, tiny_tokenizer(), rows_of(), units=asked["units"])
    clean = units.to_pandas().set_index(["row", "units", "unit"]).activation
    assert len(found) == 3 * 4 * (2 if direct else 3)
    for line in found.itertuples():
        weight = written[line.units][line.unit] @ read[line.target_units][:, line.target_unit]
        assert line.effect == pytest.approx(clean[line.row, line.units, line.unit] * weight.item(), abs=1e-10)
        assert line.gradient == pytest.approx(line.effect, abs=1e-10)


def test_gradient_effects_are_gradient_edges() -> None:
    case = units_of("latents")
    low, mid, high = (item for item, _ in case["coders"])
    found = called(units=[low, mid], on=[mid, high], gradient=True, tolerance=0).to_pandas()
    backend, tokenizer = HuggingFaceBackend(model_of("llama"), tiny_tokenizer()), tiny_tokenizer()
    for row, (prompt, _) in enumerate(PROMPTS):
        tokens = tokenizer(prompt, return_tensors="pt")
        prefill = backend.prefill(ModelInputs(tokens["input_ids"], tokens["attention_mask"]), [low, mid, high])
        for up, down in ((low, mid), (low, high), (mid, high)):
            [edges] = gradient_edges(prefill, activation_name(up), activation_name(down))
            mine = found[(found.row == row) & (found.units == up.name) & (found.target_units == down.name)]
            got = {(line.unit, line.target_unit): line.gradient for line in mine.itertuples()}
            for i, upper in enumerate(edges.upstream.tolist()):
                for j, lower in enumerate(edges.downstream.tolist()):
                    if (upper, lower) in got:
                        assert got.pop((upper, lower)) == pytest.approx(edges.values[i, j].item(), abs=1e-10)
            assert not any(got.values())  # of latents that the change lets in


def test_answers_and_objectives_leave_effects_on_units_as_they_are() -> None:
    """Answers of several tokens run as sequences of their own; a loss of a span reads nothing of what is after it."""
    asked = {"positions": "each", "at": "each", "tolerance": 1e-9}
    case = units_of("latents")
    case = {"units": case["units"], "on": case["on"], "batch_size": 2}
    expected = called(**case, **asked).to_pandas()
    longer = [evolve(row, answers=(" Kit has", " Lena", " Kit was it")) for row in rows_of()]
    for rows, objective in ((longer, "log_prob"), (rows_of(), {"loss": {"span": "what"}})):
        found = it.effects_on(model_of("llama"), tiny_tokenizer(), rows, objective=objective, **case, **asked)
        pd.testing.assert_frame_equal(found.to_pandas(), expected, atol=1e-10, rtol=0)


def test_a_crosscoder_with_its_first_hook_point_below_the_source_is_a_target() -> None:
    places = [f"layers.{layer}.resid_post" for layer in range(3)]
    shapes = {"w_enc": (3 * WIDTH, 14), "b_enc": (14,), "w_dec": (14, 3 * WIDTH), "b_dec": (3 * WIDTH,)}
    weights = {name: random(*shape, seed=i, scale=0.2) for i, (name, shape) in enumerate(shapes.items())}
    cross = Linear("cross", places, places, error=True, **weights)
    model, tokenizer, source = model_of("llama"), tiny_tokenizer(), part(1, "mlp_act", {0: [0], 30: [30]})
    found = it.effects_on(
        model, tokenizer, rows_of(), units=it.Neurons(1, [0, 30]), on=cross, positions="what", at="each", tolerance=0
    ).to_pandas()
    read = [part(layer, "resid_post", {0: list(range(WIDTH))}) for layer in range(3)]
    nodes = PlainNodes(model, BLOCKS, tokenizer.all_special_ids, [])
    assert len(found)
    for (row, position, unit), lines in found.groupby(["row", "position", "unit"]):
        tokens = tokenizer(PROMPTS[row][0])["input_ids"]
        both = nodes.run(tokens, [source, *read], [None, (source, unit, position, 0.0)]).activations
        clean, now = cross.encode(torch.cat([both[name] for name in places], -1))
        change = (clean - now)[position:]
        assert len(lines) == change.count_nonzero()
        for line in lines.itertuples():
            wanted = change[line.target_position - position, line.target_unit].item()
            assert line.effect == pytest.approx(wanted, abs=1e-10)


def test_effects_below_the_tolerance_are_counted() -> None:
    whole, cut = (called(positions="what", at="each", tolerance=tolerance) for tolerance in (0, 0.02))
    everything = whole.to_pandas()
    expected = everything[everything.effect.abs() > 0.02].reset_index(drop=True)
    assert 0 < len(expected) < len(everything)
    pd.testing.assert_frame_equal(cut.to_pandas(), expected)
    left_out = everything[everything.effect.abs() <= 0.02].groupby("target_units").effect
    told = cut.dropped().set_index("units")
    assert told.dropped.to_dict() == left_out.size().reindex(told.index, fill_value=0).to_dict()
    assert told.largest.max() == left_out.apply(lambda effect: effect.abs().max()).max()
    assert whole.dropped().dropped.sum() == 0
    assert f"{told.dropped.sum()} of at most 0.02 are left out" in repr(cut)


def test_a_budget_is_for_the_largest_gradient_effects_and_says_what_it_left_out() -> None:
    whole, cut = (called(positions="what", at="answer", tolerance=0, budget=budget) for budget in (None, 5))
    keys = ["row", "position", "units", "unit"]
    nodes = cut.to_pandas()[keys].drop_duplicates()
    assert len(nodes) == 5
    pd.testing.assert_frame_equal(
        cut.to_pandas(), whole.to_pandas().merge(nodes).sort_values(keys[:2], kind="stable").reset_index(drop=True)
    )
    points = cut.on_objective.points()
    assert points.screened_out.sum() == len(whole.on_objective.to_pandas()) - 5
    assert f"({points.screened_out.sum()} left out for the budget, by gradient at most" in repr(cut)


def test_effects_are_kept_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = called(store=tmp_path / "store")
    opened = it.NodeEffects.open(tmp_path / "store")
    pd.testing.assert_frame_equal(opened.to_pandas(), first.to_pandas())
    pd.testing.assert_frame_equal(opened.top(3), first.top(3))
    assert opened.top(3).source[0].startswith(("low latent", "mid latent"))
    assert it.Effects.open(tmp_path / "store").top(1).equals(first.on_objective.top(1))
    assert "<table" in opened._repr_html_()
    monkeypatch.setattr(NodeQuestion, "computed", None)
    called(store=tmp_path / "store")
    with pytest.raises(it.StoreError, match="belongs to another run"):
        called(store=tmp_path / "store", tolerance=0.5)
    with pytest.raises(it.StoreError, match="asks of no effects on units"):
        it.NodeEffects(it.effects(model_of("llama"), tiny_tokenizer(), rows_of(), units=it.Heads(0)).store)


def test_two_threads_get_what_one_gets() -> None:
    alone = [called(), called("errors", positions="what", at="each")]
    with switching_often():
        together = run_together(called, lambda: called("errors", positions="what", at="each"))
    for one, other in zip(alone, together, strict=True):
        pd.testing.assert_frame_equal(one.to_pandas(), other.to_pandas())


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"on": it.Neurons(0)}, it.AnalysisError, "layers.0.mlp_act .* above none .* Exchange units and on"),
        ({"on": []}, it.AnalysisError, "on is an empty list"),
        ({"on": it.Vector("layers.0.resid_post")}, it.AnalysisError, "'low' and .* are both at"),
        ({"tolerance": -1}, it.ConfigurationError, "tolerance is -1"),
        ({"tolerance": float("nan")}, it.ConfigurationError, "tolerance is nan"),
        ({"budget": 0}, it.ConfigurationError, "budget is 0"),
        ({"at": "who"}, it.DataError, "at is 'who', and row 0 has the spans what. Give 'same', 'answer'"),
        ({"at": "what"}, it.DataError, "Row 0: effects are to be read at 'what', which stands before 'answer'"),
        ({"units": it.Heads(0), "on": it.Heads(1), "direct": True}, it.AnalysisError, "there is none: name their"),
    ],
)
def test_questions_that_have_no_answer_are_refused(options: dict[str, Any], error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        called(**options)
