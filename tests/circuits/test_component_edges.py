"""Edges and nodes of components, compared with models that are written out node by node."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

import interpretune as it
from interpretune.circuits import ComponentEdges, component_edges, effects_on, node_patching, path_patching
from interpretune.questions import PromptRow
from interpretune.testing.tiny_models import VOCABULARY, tiny_gpt2, tiny_tokenizer
from tests.circuits.written_out import Row, WrittenOut
from tests.questions.test_effects import SIZES
from tests.tiny_architectures import norms_in_float64

ROWS = [
    PromptRow("Ada sees the red dog near the", (" house", " tree"), 0, "Ada sees the old dog near the"),
    PromptRow("Bo likes a boat and", (" Max", " Nora and"), 1, "Bo likes a lamp and"),
    PromptRow("the small cat", (" red", " blue"), 0, "one small dog"),
]


def sizes(*without: str) -> dict[str, int]:
    return {name: size for name, size in {**SIZES, "num_hidden_layers": 2}.items() if name not in without}


def tiny_granite() -> Any:
    """Heads share keys, and what sublayers write is multiplied by a constant."""
    more = {"embedding_multiplier": 2.0, "attention_multiplier": 0.3, "logits_scaling": 4.0}
    return GraniteForCausalLM(GraniteConfig(**sizes("head_dim"), residual_multiplier=0.5, **more))


def tiny_neox() -> Any:
    """Attention and MLP read the same stream, through norms of their own."""
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes("head_dim", "num_key_value_heads")))


def tiny_phi() -> Any:
    """Attention and MLP read the same stream through one norm."""
    return PhiForCausalLM(PhiConfig(**sizes("head_dim")))


def tiny_gemma3() -> Any:
    """Norms between sublayers and the stream, and a window."""
    types = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**sizes(), sliding_window=4, pad_token_id=3, layer_types=types))


KINDS = {
    "granite": tiny_granite,
    "gpt2": lambda: tiny_gpt2(n_layers=2),
    "neox": tiny_neox,
    "phi": tiny_phi,
    "gemma3": tiny_gemma3,
}


@cache
def ready(kind: str) -> Any:
    torch.manual_seed(0)
    model = KINDS[kind]().double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 and kind != "gpt2" else 1.0)
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return norms_in_float64(model)


def told(row: PromptRow) -> Row:
    tokenizer = tiny_tokenizer()
    answers = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in row.answers]
    prompts = (tokenizer(text)["input_ids"] for text in (row.prompt, row.corrupted))
    return Row(*prompts, answers, row.correct)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def plain(kind: str) -> WrittenOut:
    return WrittenOut(ready(kind))


BATCHES = [("left", 8), ("right", 2)]
"""The second of the latter has one row."""


def lines(found: Any, column: str) -> dict[Any, float]:
    table = found.to_pandas()
    keys = zip(table.row, table.source.astype(str), table.target.astype(str), strict=True)
    return dict(zip(keys, table[column], strict=True))


def test_attributions_are_changes_times_gradients(kind, plain):
    expected, nodes = {}, {}
    for i, row in enumerate(ROWS):
        edges, of_nodes = plain.attributed(told(row))
        expected |= {(i, *edge): value for edge, value in edges.items()}
        nodes |= {(i, name): value for name, value in of_nodes.items()}
    for side, batch_size in BATCHES:
        found = component_edges(ready(kind), tiny_tokenizer(side), ROWS, batch_size=batch_size)
        assert lines(found, "eap") == pytest.approx(expected, abs=1e-10)
        table = found.nodes()
        got = dict(zip(zip(table.row, table.node.astype(str), strict=True), table.eap, strict=True))
        assert got == pytest.approx(nodes, abs=1e-10)
    assert max(map(abs, expected.values())) > 1e-2


@pytest.mark.parametrize("kind", ["granite", "gemma3"], indirect=True)
def test_integrated_gradients_are_means_between_prompts(kind, plain):
    found = component_edges(ready(kind), tiny_tokenizer(), ROWS, method=["eap", "eap_ig"], steps=2)
    got = lines(found, "eap_ig")
    for i, row in enumerate(ROWS[:2]):
        one, other = (plain.attributed(told(row), share)[0] for share in (0.25, 0.75))
        expected = {edge: (one[edge] + other[edge]) / 2 for edge in one}
        assert {edge: got[(i, *edge)] for edge in one} == pytest.approx(expected, abs=1e-10)


EDGES = [
    ("layers.0.resid_pre", "layers.0.attn_q head 1"),
    ("layers.0.resid_pre", "layers.1.attn_k head 3"),
    ("layers.0.attn_z head 2", "layers.1.attn_v head 1"),
    ("layers.0.attn_z head 2", "layers.1.attn_q head 1"),
    ("layers.0.mlp_out", "layers.1.attn_v head 0"),
    ("layers.0.mlp_out", "layers.1.mlp_in"),
    ("layers.0.attn_z head 3", "layers.1.mlp_in"),
    ("layers.0.attn_z head 1", "logits"),
    ("layers.0.resid_pre", "logits"),
    ("layers.1.mlp_out", "logits"),
]


def test_patched_paths_are_those_of_whole_forwards(kind, plain):
    edges = [*EDGES, *([("layers.1.attn_z head 0", "layers.1.mlp_in")] if kind not in ("neox", "phi") else [])]
    expected = {(i, *edge): plain.path_patched(told(row), *edge) for i, row in enumerate(ROWS) for edge in edges}
    for (side, batch_size), budget in zip(BATCHES, (None, 5), strict=True):
        options = {"batch_size": batch_size, "row_budget": budget}
        found = path_patching(ready(kind), tiny_tokenizer(side), ROWS, edges=edges, **options)
        assert lines(found, "exact") == pytest.approx(expected, abs=1e-10)
    for edge in edges:
        assert max(abs(expected[(i, *edge)]) for i in range(len(ROWS))) > 1e-6


@pytest.mark.parametrize("kind", ["granite", "gemma3"], indirect=True)
def test_patched_nodes_are_those_of_whole_forwards(kind, plain):
    names = ["layers.0.resid_pre", "layers.0.attn_z head 2", "layers.1.attn_z head 0", "layers.1.mlp_out"]
    expected = {(i, name): plain.node_patched(told(row), name) for i, row in enumerate(ROWS) for name in names}
    for side, batch_size in BATCHES:
        found = node_patching(ready(kind), tiny_tokenizer(side), ROWS, batch_size=batch_size)
        table = found.to_pandas()
        told_of = [
            f"{line.units} head {line.unit}" if line.units.endswith("attn_z") else line.units
            for line in table.itertuples()
        ]
        got = dict(zip(zip(table.row, told_of, strict=True), table.effect, strict=True))
        assert {key: got[key] for key in expected} == pytest.approx(expected, abs=1e-10)


def linear() -> Any:
    """A GPT-2 in which everything is linear: heads attend evenly, and neither norms nor MLPs bend anything."""
    model = ready("gpt2").__class__(ready("gpt2").config).double().eval()
    model.load_state_dict(ready("gpt2").state_dict())
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, :64], block.attn.c_attn.bias[:64] = 0.0, 0.0
            block.ln_1, block.ln_2, block.mlp.act = (torch.nn.Identity() for _ in range(3))
    model.transformer.ln_f = torch.nn.Identity()
    return model


def test_attributions_are_exact_in_a_linear_model():
    found = component_edges(linear(), tiny_tokenizer(), ROWS[::2], method=["eap_ig", "eap"], steps=1, exact=10**6)
    table = found.to_pandas()
    assert table.exact.notna().all()
    for method in ("eap", "eap_ig"):
        assert np.abs(table[method] - table.exact).max() < 1e-10
    into_logits = table[table.target == "logits"].groupby("row").exact.sum()
    embedding = node_patching(linear(), tiny_tokenizer(), ROWS[::2], units=it.Vector("layers.0.resid_pre"))
    assert into_logits.tolist() == pytest.approx(embedding.to_pandas().effect.tolist(), abs=1e-10)
    assert table.exact[table.target.str.contains("attn_v")].abs().max() > 0.1


def test_the_largest_edges_are_patched_of_all_rows():
    model, tokenizer = ready("gpt2"), tiny_tokenizer()
    found = component_edges(model, tokenizer, ROWS, exact=3, batch_size=1)
    units = found.nodes().query("units == 'layers.1.attn_z' and unit == 2")
    assert set(units.node) == {"layers.1.attn_z head 2"}
    best = found.top(3)
    assert sorted(found.top(4, by="exact").exact.dropna()) == pytest.approx(
        sorted(path_patching(model, tokenizer, ROWS, edges=best).top(3).exact), abs=1e-12
    )
    assert "by eap, 3 patched exactly" in repr(found)
    assert "layers." in found._repr_html_()


def test_results_are_read_from_their_store(tmp_path):
    model, tokenizer = ready("gpt2"), tiny_tokenizer()
    found = component_edges(model, tokenizer, ROWS, exact=2, store=tmp_path)
    opened = it.ComponentEdges.open(tmp_path)
    assert opened.to_pandas().equals(found.to_pandas())
    again = component_edges(model, tokenizer, ROWS, exact=2, store=tmp_path)
    assert again.to_pandas().equals(found.to_pandas())
    with pytest.raises(it.StoreError, match="other"):
        component_edges(model, tokenizer, ROWS, exact=3, store=tmp_path)


def test_prompts_that_are_alike_have_no_effects():
    row = PromptRow("He has", (" bread", " stone"), corrupted="He has")
    found = component_edges(ready("gemma3"), tiny_tokenizer(), [row], method=["eap", "eap_ig"], steps=2, exact=5)
    table = found.to_pandas()
    assert not table[["eap", "eap_ig"]].to_numpy().any()
    assert table.exact.notna().sum() == 5
    assert table.exact.abs().max() < 1e-12
    assert not node_patching(ready("gemma3"), tiny_tokenizer(), [row]).to_pandas().effect.any()


def test_rows_need_corrupted_prompts_of_their_length():
    model, tokenizer = ready("gpt2"), tiny_tokenizer()
    rows = [ROWS[0], PromptRow("He has", (" bread", " stone"))]
    for call in (component_edges, node_patching):
        with pytest.raises(it.DataError, match="Row 1 has no corrupted prompt"):
            call(model, tokenizer, rows)
    with pytest.raises(it.TokenizationError, match="its corrupted prompt 2"):
        component_edges(model, tokenizer, [PromptRow("He has a", (" bread", " stone"), corrupted="He")])


@pytest.mark.parametrize(
    ("edge", "told"),
    [
        (("layers.1.attn_z head 0", "layers.0.mlp_in"), "reads the residual stream before"),
        (("layers.1.attn_z head 0", "layers.1.attn_q head 1"), "reads the residual stream before"),
        (("layers.9.mlp_out", "logits"), "No node writes 'layers.9.mlp_out'"),
        (("layers.0.mlp_out", "layers.1.attn_q"), "No node reads"),
        (("layers.0.mlp_out", "layers.1.attn_z head 0"), "is called attn_q, attn_k, attn_v, mlp_in, logits: there are"),
    ],
)
def test_edges_that_are_none_are_refused(edge, told):
    with pytest.raises(it.AnalysisError, match=told):
        path_patching(ready("gpt2"), tiny_tokenizer(), ROWS, edges=[edge])


def test_questions_without_an_answer_are_refused():
    model, tokenizer = ready("gpt2"), tiny_tokenizer()
    for edges in ([], None, ["logits"], ROWS):
        with pytest.raises(it.ConfigurationError, match="give pairs"):
            path_patching(model, tokenizer, ROWS, edges=edges)
    with pytest.raises(it.AnalysisError, match="named twice"):
        path_patching(model, tokenizer, ROWS, edges=[EDGES[-1], ("blocks.1.hook_mlp_out", "logits")])
    with pytest.raises(it.ConfigurationError, match="eap or eap_ig"):
        component_edges(model, tokenizer, ROWS, method="gradient")
    with pytest.raises(it.ConfigurationError, match="exact is -1"):
        component_edges(model, tokenizer, ROWS, exact=-1)
    with pytest.raises(it.ConfigurationError, match="gradient there is 0"):
        component_edges(model, tokenizer, ROWS, objective="kl")
    with pytest.raises(it.AnalysisError, match="not in a block"):
        node_patching(model, tokenizer, ROWS, units=it.Vector("final_norm"))


def test_heads_that_are_not_reached_are_refused_by_name():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": len(VOCABULARY)}
    model = FalconForCausalLM(FalconConfig(**sizes, alibi=True)).eval()
    with pytest.raises(it.HookPointError, match=r"does not reach 'layers.0.attn_q'"):
        component_edges(model, tiny_tokenizer(), ROWS)


def test_warnings_of_noise_are_of_the_line_that_asks(monkeypatch):
    for kind in (it.Effects, ComponentEdges):
        monkeypatch.setattr(kind, "noise", 1e6)
    model, tokenizer, heads = ready("gpt2"), tiny_tokenizer(), {"units": it.Heads(0)}
    calls = [
        lambda: it.effects(model, tokenizer, ROWS[:1], **heads),
        lambda: effects_on(model, tokenizer, ROWS[:1], **heads, on=it.Heads(1)),
        lambda: node_patching(model, tokenizer, ROWS[:1], **heads),
        lambda: component_edges(model, tokenizer, ROWS[:1]),
        lambda: path_patching(model, tokenizer, ROWS[:1], edges=[("layers.0.mlp_out", "logits")]),
    ]
    for call in calls:
        with pytest.warns(UserWarning, match="Rounding alone") as told:
            found = call()
        assert [item.filename for item in told] == [__file__]
        assert found.store.manifest.about["made_by"]["call"].startswith("it.")
