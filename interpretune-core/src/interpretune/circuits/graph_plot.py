"""A figure of an attribution graph: tokens from left to right, layers upwards, edges with their numbers."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

if TYPE_CHECKING:
    from interpretune.circuits.graph import AttributionGraph

COLOURS = {"latent": "#4269d0", "error": "#9c9c9c", "mlp": "#9c9c9c", "token": "#3ca951", "logit": "#ff725c"}
SIGNS = {1: "#2c7fb8", -1: "#d95f02"}
WIDTHS = (0.5, 1.5, 3.0)
"""Of the smaller half of the edges, of the next 40 %, and of the largest tenth."""


def drawn(graph: AttributionGraph, most_edges: int) -> go.Figure:
    """Draw the largest edges of a graph, and its nodes; see ``AttributionGraph.plot``."""
    nodes, edges = _placed(graph.nodes), graph.to_pandas()
    edges["size"] = edges.weight.abs()
    edges = edges.sort_values("size").tail(most_edges)
    edges["width"] = np.searchsorted([0.5, 0.9], np.arange(len(edges)) / max(len(edges), 1), side="right")
    figure, ticks = go.Figure(), [escape(token, quote=False) for token in graph.tokens]
    for (width, sign), some in edges.groupby(["width", np.sign(edges.weight)]):
        ends = [nodes.loc[some[end], ["x", "y"]].to_numpy() for end in ("source", "target")]
        gaps = np.full_like(ends[0], np.nan)
        line = np.stack([*ends, gaps], axis=1).reshape(-1, 2)
        figure.add_scatter(
            x=line[:, 0],
            y=line[:, 1],
            mode="lines",
            line={"width": WIDTHS[int(width)], "color": SIGNS[int(sign)]},
            opacity=0.5,
            hoverinfo="skip",
            showlegend=False,
        )
    middle = (nodes.loc[edges.source, ["x", "y"]].to_numpy() + nodes.loc[edges.target, ["x", "y"]].to_numpy()) / 2
    known = ["weight", *(name for name in ("linear_total", "exact") if name in edges)]
    told = [
        f"{escape(edge['source_name'], quote=False)} to {escape(edge['target_name'], quote=False)}"
        + "".join(f"<br>{name} {edge[name]:.4g}" for name in known)
        for edge in edges.to_dict("records")
    ]
    figure.add_scatter(
        x=middle[:, 0], y=middle[:, 1], mode="markers", opacity=0, text=told, hoverinfo="text", showlegend=False
    )
    for kind, some in nodes.groupby("kind", sort=False):
        text = [
            f"{escape(node.name, quote=False)}<br>token {node.position}: {ticks[node.position]}"
            f"<br>activation {node.activation:.4g}<br>influence {node.influence:.4g}"
            for node in some.itertuples(index=False)
        ]
        marker = {"color": COLOURS[str(kind)], "size": 9, "symbol": "square" if kind in ("error", "mlp") else "circle"}
        figure.add_scatter(
            x=some.x, y=some.y, mode="markers", marker=marker, name=str(kind), text=text, hoverinfo="text"
        )
    cut = f", the {len(edges)} largest edges" if len(edges) < int((graph.adjacency != 0).sum()) else ""
    figure.update_layout(
        title=f"Attribution graph{cut}",
        xaxis={"tickvals": [*range(len(ticks))], "ticktext": ticks},
        yaxis={
            "title": "layer",
            "tickvals": [*range(-1, graph.n_layers + 1)],
            "ticktext": ["tokens", *map(str, range(graph.n_layers)), "logits"],
        },
        hovermode="closest",
        template="plotly_white",
    )
    return figure


def _placed(nodes: pd.DataFrame) -> pd.DataFrame:
    """Nodes with ``x`` and ``y``: those of one token and layer side by side, the most influence first."""
    cells = nodes.groupby(["layer", "position"]).influence
    rank, count = cells.rank(method="first", ascending=False) - 1, cells.transform("size")
    x = nodes.position + (rank - (count - 1) / 2) * np.minimum(0.12, 0.8 / count)
    return nodes.assign(x=x, y=nodes.layer)
