"""An attribution graph: its nodes, its edges, what pruning keeps of them, and exact effects beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from attrs import asdict, evolve, field, frozen
from torch import Tensor

from interpretune.activations.inputs import ModelInputs
from interpretune.backends.backend import AnalysisBackend
from interpretune.circuits.graph_file import MATRICES, open_graph, save_graph
from interpretune.circuits.graph_json import write_json
from interpretune.circuits.graph_plot import drawn
from interpretune.circuits.pruning import pruned, scaled
from interpretune.circuits.stream_sources import Sources
from interpretune.circuits.total_effects import total_effects
from interpretune.errors import AnalysisError, ConfigurationError, StoreError
from interpretune.system.html_table import html_table
from interpretune.system.model_lock import model_lock
from interpretune.system.torch_state import eval_mode

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from transformers import PreTrainedTokenizerBase


TOLD = (
    "prompt",
    "tokens",
    "model",
    "n_layers",
    "dictionaries",
    "unexplained",
    "scores",
    "node_share",
    "edge_share",
)
"""Attributes that are written as JSON."""


@frozen(eq=False)
class AskedGraph:
    """What a graph was made from, in this process.

    Attributes:
        backend: Runs the model.
        tokenizer: Its tokenizer.
        inputs: The prompt.
        sources: All that is written into the residual stream.
        batch_size: How many targets, or sources, run at a time.
    """

    backend: AnalysisBackend
    tokenizer: PreTrainedTokenizerBase
    inputs: ModelInputs
    sources: Sources
    batch_size: int


@frozen
class LeftOut:
    """Active latents that are no nodes.

    Attributes:
        active: How many latents are active, nodes among them.
        latents: How many of those that are no nodes lead to the logits.
        influence: Their share of the influence of all latents, as far as it reaches them straight from nodes.
    """

    active: int
    latents: int
    influence: float


@frozen(eq=False)
class AttributionGraph:
    """Nodes of a prompt, and what each contributes straight to each other.

    Attributes:
        prompt: With the special tokens.
        tokens: Texts of its tokens.
        model: Name of the model.
        n_layers: Its layers.
        dictionaries: Names of the transcoders.
        unexplained: Layers without one: the whole outputs of their MLPs are nodes of the kind ``mlp``, so that no edge
            says what they are made from.
        left_out: Active latents that are no nodes.
        nodes: A line for each: ``kind`` (``latent``, ``error``, ``mlp``, ``token``, ``logit``), ``layer``,
            ``position``, ``unit`` (id of the latent or token), ``name``, ``activation`` (of logits the centred logit),
            ``influence`` on the logits, ``cumulative`` (its share of all influence, with all nodes above it),
            ``probability`` of logits; and of what has edges to it: ``constant``, from biases, and ``left_out``, from
            latents that are no nodes. Edges of the unpruned graph, these two and nothing else make the activation.
        adjacency: Edges ``[n, n]``, targets by sources, float64.
        logit_vectors: Centred logits by what the last norm makes at the last token, ``[k, d_model]``.
        scores: Of the unpruned graph, as circuit-tracer measures it. ``replacement`` is the influence of tokens as a
            share of that of tokens and errors; ``completeness`` the share of what leads to nodes that is not from
            errors, by the influence of the nodes. Whole MLPs count as errors, and latents that are no nodes as nothing.
        node_share: Share of the influence of nodes that pruning has kept; None: unpruned.
        edge_share: That of edges.
        linear_totals: What the graph says that the target loses without the source, over all paths, ``[n, n]``; None
            unless exact effects are there.
        exact: What it loses in the model, ``[n, n]``; NaN where unknown.
        asked: What it was made from; None where that is not in memory.
        whole: The unpruned graph; None: this is it.
    """

    prompt: str
    tokens: tuple[str, ...]
    model: str
    n_layers: int
    dictionaries: tuple[str, ...]
    unexplained: tuple[int, ...]
    left_out: LeftOut
    nodes: pd.DataFrame
    adjacency: Tensor
    logit_vectors: Tensor
    scores: Mapping[str, float]
    node_share: float | None = None
    edge_share: float | None = None
    linear_totals: Tensor | None = None
    exact: Tensor | None = None
    asked: AskedGraph | None = field(default=None, repr=False)
    whole: AttributionGraph | None = field(default=None, repr=False)

    def prune(self, node: float = 0.8, edge: float = 0.98) -> AttributionGraph:
        """Keep the fewest nodes with a share of the influence on the logits, and the fewest edges between them.

        As circuit-tracer does: tokens and logits stay; errors and latents from which nothing leads on any more, and
        latents to which nothing leads, go.

        Args:
            node: Share of the influence of all nodes.
            edge: Share of the influence of all edges between the nodes that are kept.

        Raises:
            ConfigurationError: A share is not between 0 and 1.
        """
        for name, share in (("node", node), ("edge", edge)):
            if not 0 <= share <= 1:
                raise ConfigurationError(f"{name} is {share!r}; it is a share of the influence: between 0 and 1.")
        kinds = self.nodes.kind
        always = torch.tensor(kinds.isin(["token", "logit"]).to_numpy(copy=True))
        latents = torch.tensor((kinds == "latent").to_numpy(copy=True))
        weights = torch.tensor(self.nodes.probability.fillna(0.0).to_numpy(copy=True))
        kept = pruned(self.adjacency, weights, always, latents, node, edge)
        rows = kept.nodes.nonzero().flatten()

        def part(of: Tensor | None) -> Tensor | None:
            return None if of is None else of[rows][:, rows]

        return evolve(
            self,
            nodes=self.nodes.iloc[rows.numpy()].reset_index(drop=True),
            adjacency=(self.adjacency * kept.edges)[rows][:, rows],
            node_share=node,
            edge_share=edge,
            linear_totals=part(self.linear_totals),
            exact=part(self.exact),
            whole=self.whole or self,
        )

    def exact_effects(self) -> AttributionGraph:
        """The same graph with exact total effects beside its edges: one row of a whole forward for each source.

        The total effect is the target's activation in the model as it is, minus that in the model where what the source
        writes is taken away, and everything after it computed anew: attention, norms, MLPs, and the latents that read.
        ``linear_total`` is what the graph says about the same, over all its paths.

        Raises:
            AnalysisError: The model is not in memory.
        """
        if self.asked is None:
            raise AnalysisError("The model of this attribution graph is not in memory. Make the graph again.")
        asked, kinds = self.asked, self.nodes.kind
        source = torch.tensor(self.nodes.source.to_numpy(copy=True))
        columns = (self.adjacency != 0).any(0).nonzero().flatten()
        columns = columns[source[columns].argsort()]
        latents = torch.tensor((kinds == "latent").to_numpy(copy=True)).nonzero().flatten()
        logits = torch.tensor((kinds == "logit").to_numpy(copy=True)).nonzero().flatten()
        device = asked.inputs.tokens.device
        with model_lock(asked.backend.model), eval_mode(asked.backend.model, *asked.sources.models):
            found = total_effects(
                asked.backend,
                asked.inputs,
                asked.sources,
                source[columns].to(device),
                source[latents].to(device),
                self.logit_vectors,
                asked.batch_size,
            )
        exact = torch.full_like(self.adjacency, torch.nan)
        exact[torch.cat([latents, logits]).unsqueeze(-1), columns] = found
        whole = self.whole or self
        here = torch.tensor(whole.nodes.index[_keys(whole.nodes).isin(_keys(self.nodes))].to_numpy(copy=True))
        return evolve(self, exact=exact, linear_totals=_totals(whole)[here][:, here])

    def to_pandas(self) -> pd.DataFrame:
        """A line for each edge: ``source`` and ``target`` (rows of ``nodes``), their names and positions, ``weight``.

        With exact effects also ``linear_total`` and ``exact``.
        """
        targets, sources = (self.adjacency != 0).nonzero().unbind(-1)
        found: dict[str, object] = {}
        for end, index in (("source", sources), ("target", targets)):
            found[end] = index.numpy()
            for column in ("name", "position"):
                found[f"{end}_{column}"] = self.nodes[column].to_numpy()[index.numpy()]
        found["weight"] = self.adjacency[targets, sources].numpy()
        if self.exact is not None and self.linear_totals is not None:
            found["linear_total"] = self.linear_totals[targets, sources].numpy()
            found["exact"] = self.exact[targets, sources].numpy()
        return pd.DataFrame(found)

    def save(self, path: str | Path) -> Path:
        """Write the graph with all its numbers into a file, for ``open``; without the model and what was pruned.

        Raises:
            OutputError: The file cannot be written.
        """
        matrices = {name: item for name in (*MATRICES, "logit_vectors") if (item := getattr(self, name)) is not None}
        about = {name: getattr(self, name) for name in TOLD} | {"left_out": asdict(self.left_out)}
        save_graph(Path(path), self.nodes, matrices, about)
        return Path(path)

    @classmethod
    def open(cls, path: str | Path) -> AttributionGraph:
        """Read a graph that was saved.

        Raises:
            StoreError: The file is not there, damaged, or something else.
        """
        nodes, tensors, told = open_graph(Path(path))
        try:
            about: dict[str, Any] = {**told, **tensors, "left_out": LeftOut(**told["left_out"])}
            about |= {name: tuple(told[name]) for name in ("tokens", "dictionaries", "unexplained")}
            return cls(nodes=nodes, **about)
        except (KeyError, TypeError) as error:
            raise StoreError(f"The attribution graph {path} is damaged: {error}. Make it again.") from error

    def plot(self, most_edges: int = 1000) -> go.Figure:
        """Nodes by token and layer, and the edges between them, with their numbers to be hovered over; prune first.

        Args:
            most_edges: How many edges are drawn, the largest.
        """
        return drawn(self, most_edges)

    def to_json(self, path: str | Path, *, scan: str | None = None, source_set: str | None = None) -> Path:
        """Write the graph as circuit-tracer's and Neuronpedia's pages read it; prune it first.

        Edges have their exact effects, where there are some, as ``exact`` and ``linear_total`` beside ``weight``.

        Args:
            path: The file; its name without ``.json`` is the slug of the graph.
            scan: Name of the model there, such as ``gemma-2-2b``; None: that of the model.
            source_set: Neuronpedia's name of the transcoders, such as ``gemmascope-transcoder-16k``.

        Raises:
            OutputError: The file cannot be written.
        """
        return write_json(self, Path(path), scan or self.model, source_set)

    @property
    def about(self) -> str:
        """What the graph has and lacks, in sentences."""
        kinds = self.nodes.kind.value_counts()
        told = (
            f"{kinds.get('latent', 0)} latents, {kinds.get('error', 0)} errors, {kinds.get('token', 0)} tokens and "
            f"{kinds.get('logit', 0)} logits, {int((self.adjacency != 0).sum())} edges."
        )
        if self.node_share is not None:
            told += f" Pruned to {self.node_share:.0%} of the influence of nodes, {self.edge_share:.0%} of edges."
        if self.left_out.latents:
            told += (
                f" {self.left_out.latents} of {self.left_out.active} active latents were left out for max_nodes; "
                f"{self.left_out.influence:.1%} of the influence of latents reaches them straight from nodes."
            )
        if self.unexplained:
            layers = ", ".join(map(str, self.unexplained))
            told += (
                f" Layers without a transcoder: {layers}. The whole outputs of their MLPs are nodes "
                f"({kinds.get('mlp', 0)}), and nothing says what these are made from."
            )
        return told

    def __repr__(self) -> str:
        end = self.prompt if len(self.prompt) <= 40 else f"...{self.prompt[-37:]}"
        return f"Attribution graph of {end!r}: {self.about}"

    def _repr_html_(self) -> str:
        shown = self.nodes.sort_values("influence", ascending=False, kind="stable")
        columns = ["kind", "layer", "position", "name", "activation", "influence"]
        return html_table(repr(self), shown[columns].to_dict("records"))


def scores_of(nodes: pd.DataFrame, adjacency: Tensor) -> dict[str, float]:
    """The scores of an unpruned graph; see ``AttributionGraph``."""
    errors = nodes.kind.isin(["error", "mlp"]).to_numpy(copy=True)
    influence = nodes.influence.to_numpy()
    of_tokens, of_errors = influence[(nodes.kind == "token").to_numpy()].sum(), influence[errors].sum()
    shares = scaled(adjacency)[:, torch.tensor(errors)].sum(-1).numpy()
    weights = influence + nodes.probability.fillna(0.0).to_numpy()
    return {
        "replacement": float(of_tokens / (of_tokens + of_errors)),
        "completeness": float(((1 - shares) * weights).sum() / weights.sum()),
    }


def _keys(nodes: pd.DataFrame) -> pd.Series:
    """What nodes of one prompt are told apart by."""
    return nodes.kind + " " + nodes.layer.astype(str) + " " + nodes.position.astype(str) + " " + nodes.unit.astype(str)


def _totals(graph: AttributionGraph) -> Tensor:
    """What targets lose without sources, over all paths of a graph, ``[n, n]``."""
    values = torch.tensor(graph.nodes.activation.to_numpy(copy=True))
    passes = torch.tensor((graph.nodes.kind == "latent").to_numpy(copy=True))
    passed = graph.adjacency * torch.where(passes, 1 / values, 0.0)
    return torch.linalg.solve(torch.eye(len(values), dtype=torch.float64) - passed, graph.adjacency)
