"""Attribution graphs beside plain loops that hold the model themselves, and beside published pruning and files."""

from __future__ import annotations

import copy
import gc
import json
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

import interpretune as it
from interpretune.analysis import AnalysisRunner, QuestionCfg
from interpretune.circuits import AttributionGraph, AttributionGraphs
from interpretune.circuits.linear_run import LinearRun
from interpretune.testing.tiny_models import VOCABULARY, tiny_llama, tiny_tokenizer
from tests.circuits.plain_graph import HeldModel, Skipping, cross_layer, transcoders
from tests.cross_layer import Linear
from tests.question_sessions import session_of
from tests.questions.test_effects import MODELS, SIZES
from tests.questions.test_lenses import tiny_gemma3
from tests.tiny_architectures import backend_of, make_model as other_architecture, norms_in_float64

PROMPT = "Ada sees the red dog"
KINDS = {
    "llama": (tiny_llama, transcoders([0, 2])),
    "gpt2": (MODELS["gpt2"], [Skipping(item, 7 + i) for i, item in enumerate(cross_layer(3))]),
    "gemma3": (tiny_gemma3, transcoders([0, 1])),
    "qwen3": (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)), cross_layer(3)),
}


@cache
def ready(kind: str) -> tuple[PreTrainedModel, list[Linear]]:
    torch.manual_seed(0)
    model = KINDS[kind][0]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return norms_in_float64(model), KINDS[kind][1]


def graph_of(kind: str = "llama", **options: Any) -> AttributionGraph:
    model, dictionaries = ready(kind)
    return it.attribution_graph(model, tiny_tokenizer(), PROMPT, transcoders=dictionaries, batch_size=16, **options)


@cache
def held(kind: str) -> HeldModel:
    return HeldModel(ready(kind)[0], torch.tensor(tiny_tokenizer()(PROMPT)["input_ids"]), ready(kind)[1])


def keys(graph: AttributionGraph) -> list[tuple[str, int, int, int]]:
    return [*graph.nodes[["kind", "layer", "position", "unit"]].itertuples(index=False, name=None)]


@pytest.mark.parametrize("kind", KINDS)
def test_edges_are_those_of_plain_loops(kind):
    graph, plain = graph_of(kind), held(kind)
    names, nothing = keys(graph), plain.held(*plain.written)
    clean, column = plain.held(), {}
    targets = [(i, name) for i, name in enumerate(names) if name[0] in ("latent", "logit")]
    for source in plain.written:
        there = plain.held(source)
        column[source] = torch.stack([clean[name] - there[name] for _, name in targets])
    rows = [i for i, _ in targets]
    for j, name in enumerate(names):
        expected = column.pop(name) if name[0] != "logit" else torch.zeros(len(rows), dtype=torch.float64)
        torch.testing.assert_close(graph.adjacency[rows, j], expected, rtol=0, atol=1e-10)
    left = torch.stack([*column.values()]) if column else torch.zeros(1, len(rows), dtype=torch.float64)
    assert {name[0] for name in column} <= {"latent"}
    assert left.abs().max() < 1e-12  # nothing leads from the latents that are no nodes
    assert not graph.adjacency[[i for i in range(len(names)) if i not in rows]].any()
    for i, name in targets:
        value, constant = graph.nodes.activation[i], graph.nodes.constant[i]
        assert value == pytest.approx(clean[name].item(), abs=1e-10)
        assert constant == pytest.approx(nothing[name].item(), abs=1e-10)
        assert value == pytest.approx(graph.adjacency[i].sum().item() + constant, abs=1e-10)
    assert sum(name[0] == "latent" for name in names) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_exact_effects_are_those_of_whole_forwards(kind):
    graph, plain = graph_of(kind).prune(0.97, 0.9).exact_effects(), held(kind)
    names, clean, without = keys(graph), plain.whole(), {}
    edges = graph.to_pandas()
    for edge in edges.itertuples():
        source, target = names[edge.source], names[edge.target]
        if source not in without:
            without[source] = plain.whole(source)
        assert edge.exact == pytest.approx((clean[target] - without[source][target]).item(), abs=1e-10)
    assert len(edges) > 20
    assert (edges.exact - edges.linear_total).abs().max() > 1e-3


def linear_gpt2() -> tuple[GPT2LMHeadModel, list[Linear]]:
    """A model without norms, attention and nonlinearity, and transcoders that are its MLPs."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": len(VOCABULARY)}
    model = GPT2LMHeadModel(GPT2Config(**sizes, activation_function="linear")).double().eval()
    body, coders = model.transformer, []
    body.ln_f = nn.Identity()
    for i, block in enumerate(body.h):
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
        nn.init.zeros_(block.attn.c_proj.weight)
        nn.init.normal_(block.mlp.c_proj.weight, std=0.2)
        first, last = block.mlp.c_fc, block.mlp.c_proj
        weights = {"w_enc": first.weight, "b_enc": first.bias, "w_dec": last.weight, "b_dec": last.bias}
        weights = {name: weight.detach() for name, weight in weights.items()}
        coders.append(WithoutRelu(f"layer {i}", [f"layers.{i}.mlp_in"], [f"layers.{i}.mlp_out"], False, **weights))
    return model, coders


class WithoutRelu(Linear):
    def encode(self, activations: Tensor) -> Tensor:
        return activations @ self.w_enc + self.b_enc


def test_in_a_linear_model_exact_is_linear():
    model, coders = linear_gpt2()
    graph = it.attribution_graph(model, tiny_tokenizer(), "He has", transcoders=coders).prune(1.0, 1.0).exact_effects()
    edges, nodes = graph.to_pandas(), graph.nodes
    assert (edges.exact - edges.linear_total).abs().max() < 1e-10
    source, target = nodes.loc[edges.source], nodes.loc[edges.target]
    near = (source.kind == "latent").to_numpy() & (target.layer.to_numpy() == source.layer.to_numpy() + 1)
    assert near.sum() > 100
    assert (edges.exact - edges.weight)[near].abs().max() < 1e-10
    assert (edges.exact - edges.weight)[~near].abs().max() > 1e-3
    for edge in edges[near].head(20).itertuples():
        one, other = nodes.loc[edge.source], nodes.loc[edge.target]
        if other.kind == "latent":
            product = coders[one.layer].w_dec[one.unit] @ coders[other.layer].w_enc[:, other.unit]
            assert edge.weight == pytest.approx(one.activation * product.item(), abs=1e-10)


def test_pruning_is_that_of_its_definition():
    graph = graph_of("qwen3")
    edges, n = graph.adjacency, len(graph.nodes)
    shares = edges.abs() / edges.abs().sum(-1, keepdim=True).clamp(min=1e-300)
    weights = torch.tensor(graph.nodes.probability.fillna(0).to_numpy(copy=True))
    influence = weights @ (torch.linalg.inv(torch.eye(n, dtype=torch.float64) - shares) - torch.eye(n))
    torch.testing.assert_close(torch.tensor(graph.nodes.influence.to_numpy(copy=True)), influence, rtol=0, atol=1e-12)
    fixed = graph.nodes.kind.isin(["token", "logit"]).to_numpy(copy=True)
    kept, total = set(fixed.nonzero()[0]), 0.0
    for i in influence.argsort(descending=True).tolist():
        if total < 0.8 * influence.sum():
            kept.add(i)
            total += influence[i]
    between = edges.clone()
    outside = [i for i in range(n) if i not in kept]
    between[outside], between[:, outside] = 0, 0
    shares = between.abs() / between.abs().sum(-1, keepdim=True).clamp(min=1e-300)
    arriving = weights @ torch.linalg.inv(torch.eye(n, dtype=torch.float64) - shares)
    scores, chosen, total = shares * arriving.unsqueeze(-1), set(), 0.0
    for k in scores.flatten().argsort(descending=True).tolist():
        if total < 0.98 * scores.sum():
            chosen.add(divmod(k, n))
            total += scores.flatten()[k]
    latents, before = set((graph.nodes.kind == "latent").to_numpy().nonzero()[0]), None
    while kept != before:
        before = set(kept)
        chosen = {(t, s) for t, s in chosen if t in kept and s in kept}
        leads, led = {s for _, s in chosen}, {t for t, _ in chosen}
        kept = {i for i in kept if fixed[i] or (i in leads and (i in led or i not in latents))}
    pruned = graph.prune()
    names = keys(graph)
    assert keys(pruned) == [names[i] for i in sorted(kept)]
    found = {(keys(pruned)[e.target], keys(pruned)[e.source]) for e in pruned.to_pandas().itertuples()}
    assert found == {(names[t], names[s]) for t, s in chosen}
    assert len(kept) < n


def test_latents_beyond_the_most_are_counted():
    whole, some = graph_of(), graph_of(max_nodes=6)
    assert (some.nodes.kind == "latent").sum() == 6
    assert some.left_out.latents == (whole.nodes.kind == "latent").sum() - 6
    assert 0 < some.left_out.influence < 1
    assert whole.left_out.influence == whole.left_out.latents == 0
    assert "left out for max_nodes" in some.about
    for node, name in zip(some.nodes.itertuples(), keys(some), strict=True):
        if node.kind in ("latent", "logit"):
            same = whole.nodes.loc[keys(whole).index(name)]
            assert node.constant == pytest.approx(same.constant, abs=1e-10)
            parts = some.adjacency[node.Index].sum().item() + node.left_out + node.constant
            assert node.activation == pytest.approx(parts, abs=1e-10)


def test_layers_without_transcoders_are_said():
    graph = graph_of()
    assert graph.unexplained == (1,)
    assert set(graph.nodes[graph.nodes.kind == "mlp"].layer) == {1}
    assert "Layers without a transcoder: 1. The whole outputs of their MLPs are nodes (6)" in repr(graph)


def test_skipped_tokens_are_errors_as_a_whole():
    model, dictionaries = ready("llama")
    skipping = [copy.copy(item) for item in dictionaries]
    for item in skipping:
        item.skips_special_tokens = True
    graph = it.attribution_graph(model, tiny_tokenizer(), PROMPT, transcoders=skipping)
    assert 0 not in set(graph.nodes[graph.nodes.kind == "latent"].position)
    plain, names, error = copy.copy(held("llama")), keys(graph), ("error", 0, 0, -1)
    plain.written = {error: {("mlp_out", 0): plain.clean["mlp_out", 0][0]}}
    clean, without = plain.held(), plain.held(error)
    for i, name in enumerate(names):
        if name[0] == "logit":
            expected = (clean[name] - without[name]).item()
            assert graph.adjacency[i, names.index(error)].item() == pytest.approx(expected, abs=1e-10)


def test_a_graph_keeps_no_forward_with_its_gradients():
    graph = graph_of()
    gc.collect()
    assert graph.asked is not None
    assert not any(issubclass(type(item), LinearRun) for item in gc.get_objects())


def test_a_saved_graph_is_the_same(tmp_path):
    graph = graph_of().prune(0.97, 0.9).exact_effects()
    again = AttributionGraph.open(graph.save(tmp_path / "dog.graph"))
    assert repr(again) == repr(graph)
    assert again.scores == graph.scores
    pd.testing.assert_frame_equal(again.nodes, graph.nodes)
    pd.testing.assert_frame_equal(again.to_pandas(), graph.to_pandas())
    with pytest.raises(it.AnalysisError, match="not in memory"):
        again.exact_effects()
    (tmp_path / "cut").write_bytes((tmp_path / "dog.graph").read_bytes()[:-8])
    (tmp_path / "other").write_bytes(save({"a": torch.ones(1)}))
    for name in ("cut", "other", "none"):
        with pytest.raises(it.StoreError, match="cannot be read as an attribution graph"):
            AttributionGraph.open(tmp_path / name)


def test_the_figure_has_the_largest_edges_with_their_numbers():
    graph = graph_of().prune(0.97, 0.9).exact_effects()
    edges = graph.to_pandas()
    figure = graph.plot(most_edges=20)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert sum(len(trace.x) for trace in lines) == 3 * 20
    [told] = [trace.text for trace in figure.data if trace.opacity == 0]
    largest = edges.loc[edges.weight.abs().idxmax()]
    assert told[-1] == (
        f"'&lt;bos&gt;' to {largest.target_name}<br>weight {largest.weight:.4g}"
        f"<br>linear_total {largest.linear_total:.4g}<br>exact {largest.exact:.4g}"
    )
    assert "the 20 largest edges" in figure.layout.title.text
    assert figure.layout.xaxis.ticktext[0] == "&lt;bos&gt;"
    assert [len(trace.x) for trace in graph.plot().data if trace.name == "logit"] == [5]


NODE = {
    "node_id": str,
    "feature": int,
    "layer": str,
    "ctx_idx": int,
    "feature_type": str,
    "token_prob": float,
    "is_target_logit": bool,
    "run_idx": int,
    "reverse_ctx_idx": int,
    "jsNodeId": str,
    "clerp": str,
}
"""Fields that circuit-tracer's and Neuronpedia's pages ask for."""


def test_the_file_is_as_published_pages_read_it(tmp_path):
    graph = graph_of("gpt2", answers=[" house", " tree"]).prune(0.99, 0.95).exact_effects()
    told = json.loads(graph.to_json(tmp_path / "dog.json", scan="gpt2", source_set="mine").read_text())
    metadata, nodes, links = told["metadata"], told["nodes"], told["links"]
    assert (metadata["slug"], metadata["scan"], metadata["node_threshold"]) == ("dog", "gpt2", 0.99)
    assert metadata["prompt_tokens"] == ["<bos>", *PROMPT.split()]
    assert told["qParams"] == {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    for node in nodes:
        assert {name: type(node[name]) for name in NODE} == NODE
        assert node["influence"] is None or 0 <= node["influence"] <= 1 + 1e-9
    by_type = {kind: [n for n in nodes if n["feature_type"] == kind] for kind in {n["feature_type"] for n in nodes}}
    assert {*by_type} == {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}
    assert [node["clerp"].split(" (")[0] for node in by_type["logit"]] == ['Output "house"', 'Output "tree"']
    assert {node["layer"] for node in by_type["logit"]} == {"4"}
    ids = [node["node_id"] for node in nodes]
    assert len(set(ids)) == len(ids)
    assert {edge[end] for edge in links for end in ("source", "target")} <= set(ids)
    assert len(links) == len(graph.to_pandas())
    assert all({*edge} == {"source", "target", "weight", "linear_total", "exact"} for edge in links)


def test_what_is_no_attribution_graph_is_refused():
    model, dictionaries = ready("llama")
    tokenizer, first = tiny_tokenizer(), dictionaries[0]

    def refused(
        error: type[Exception], match: str, *given: Any, of: Any = model, prompt: Any = PROMPT, **options: Any
    ) -> None:
        with pytest.raises(error, match=match):
            it.attribution_graph(of, tokenizer, prompt, transcoders=given, **options)

    autoencoder = Linear("sae", ["layers.0.resid_post"], ["layers.0.resid_post"], False, **weights_of(first))
    refused(it.AnalysisError, "'sae' reads layers.0.resid_post and writes layers.0.resid_post.*effects", autoencoder)
    second = Linear("second", ["layers.0.mlp_in"], ["layers.0.mlp_out"], False, **weights_of(first))
    refused(it.AnalysisError, "two in one layer", first, second)
    refused(it.ConfigurationError, r"transcoders is \(\); give latent models")
    refused(it.ConfigurationError, "give latent models", "layer 0")
    refused(it.DataError, "Row 0 is \\['Ada", first, prompt=[PROMPT, PROMPT])
    refused(it.ConfigurationError, "max_nodes is 0", first, max_nodes=0)
    refused(it.ConfigurationError, "logit_share is 0", first, logit_share=0)
    falcon = backend_of(other_architecture("falcon"))
    refused(it.HookPointError, "does not reach 'layers.0.attn_pattern'", transcoders([0, 1])[1], of=falcon)
    with pytest.raises(it.ConfigurationError, match="node is 2"):
        graph_of().prune(2)


def weights_of(item: Linear) -> dict[str, Tensor]:
    return {name: getattr(item, name) for name in ("w_enc", "b_enc", "w_dec", "b_dec")}


def test_a_gate_in_attention_is_noticed():
    model = tiny_llama().double().eval()
    for block in model.model.layers:
        block.self_attn.o_proj.register_forward_hook(lambda _, __, output: output * output.sigmoid())
    with pytest.raises(it.AnalysisError, match="this model is not linear"):
        it.attribution_graph(model, tiny_tokenizer(), PROMPT, transcoders=transcoders([0]))


def test_graphs_of_rows_in_a_run_are_those_of_the_call(tmp_path, monkeypatch):
    model, coders = ready("llama")
    rows = [it.PromptRow(f"{name} sees the red dog near the", (" house", " tree")) for name in ("Ada", "Bo")]
    session = session_of(tmp_path, rows, latent_models=coders, hf_model=copy.deepcopy(model))
    cfg = QuestionCfg(method="attribution_graph", units={"latents": "all"}, prune=[0.6, 0.9], max_nodes=12)
    runner = AnalysisRunner(**session, root=tmp_path / "stores")
    found = AttributionGraphs(runner.run({"graphs": cfg})["graphs"])
    for number, row in enumerate(rows):
        alone = it.attribution_graph(
            session.module.model, session.datamodule.tokenizer, row, transcoders=coders, max_nodes=12
        )
        wanted = alone.prune(0.6, 0.9).exact_effects().to_pandas()
        mine = found.to_pandas().query("row == @number")
        assert len(mine) == len(wanted) > 0
        assert mine.source.tolist() == wanted.source_name.tolist()
        for name in ("source_position", "target_position", "weight", "linear_total", "exact"):
            assert mine[name].to_numpy() == pytest.approx(wanted[name].to_numpy(), abs=1e-10)
        assert found.rows().replacement[number] == pytest.approx(alone.scores["replacement"])
    assert found.top(1).mean_size[0] > 0
    unknown = found.to_pandas().assign(exact=float("nan"))
    monkeypatch.setattr(AttributionGraphs, "to_pandas", lambda _: unknown)
    assert found.top(1)[["exact", "mean_size"]].isna().all(axis=None)
    assert found.top(1).weight.notna().all()
    monkeypatch.undo()
    assert "pruned to" in str(found)
    part = QuestionCfg(method="attribution_graph", units={"latents": "all", "only": [1]})
    with pytest.raises(it.AnalysisError, match="made with whole transcoders"):
        runner.run({"graphs": part})
