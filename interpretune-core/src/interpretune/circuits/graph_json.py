"""Attribution graphs as the pages of circuit-tracer and Neuronpedia read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpretune.system.whole_file import output_file

if TYPE_CHECKING:
    from interpretune.circuits.graph import AttributionGraph


def write_json(graph: AttributionGraph, path: Path, scan: str, source_set: str | None) -> Path:
    """Write a graph; see ``AttributionGraph.to_json``."""
    text = json.dumps(graph_json(graph, path.stem, scan, source_set), allow_nan=False, indent=1)
    with output_file(path, "choose another place") as place:
        place.write_text(text, encoding="utf-8")
    return path


def graph_json(graph: AttributionGraph, slug: str, scan: str, source_set: str | None) -> dict[str, Any]:
    """The graph in the fields of the published schema."""
    nodes = [_node(graph, line) for line in graph.nodes.itertuples()]
    metadata: dict[str, Any] = {
        "slug": slug,
        "scan": scan,
        "transcoder_list": list(graph.dictionaries),
        "prompt_tokens": list(graph.tokens),
        "prompt": graph.prompt,
        "schema_version": 1,
        "info": {"description": graph.about, "generator": {"name": "interpretune"}},
    }
    if graph.node_share is not None:
        shares = {"node_threshold": graph.node_share, "edge_threshold": graph.edge_share}
        metadata |= {"node_threshold": graph.node_share, "pruning_settings": shares}
    if source_set is not None:
        metadata["feature_details"] = {"neuronpedia_source_set": source_set}
    known = [name for name in ("linear_total", "exact") if graph.exact is not None]
    links = [
        {
            "source": nodes[edge["source"]]["node_id"],
            "target": nodes[edge["target"]]["node_id"],
            **{name: edge[name] for name in ("weight", *known)},
        }
        for edge in graph.to_pandas().to_dict("records")
    ]
    shown = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": metadata, "qParams": shown, "nodes": nodes, "links": links}


def _node(graph: AttributionGraph, line: Any) -> dict[str, Any]:
    layer, unit, position = line.layer, line.unit, line.position
    node: dict[str, Any] = {
        "node_id": f"{layer}_{unit}_{position}",
        "feature": unit,
        "layer": str(layer),
        "ctx_idx": position,
        "feature_type": "mlp reconstruction error",
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{layer}_{unit}-{position}",
        "clerp": "",
        "influence": line.cumulative,
        "activation": None,
    }
    if line.kind == "latent":
        pair = (layer + unit) * (layer + unit + 1) // 2 + unit  # Cantor's number of layer and latent
        node |= {"feature": pair, "feature_type": "cross layer transcoder", "jsNodeId": f"{layer}_{unit}-0"}
        node["activation"] = line.activation
    elif line.kind == "mlp":
        node["clerp"] = f"{line.name}, which has no transcoder"
    elif line.kind == "token":
        node |= {"node_id": f"E_{unit}_{position}", "jsNodeId": f"E_{unit}-{position}", "feature": position}
        node |= {"layer": "E", "feature_type": "embedding"}
    elif line.kind == "logit":
        above = str(graph.n_layers + 1)
        node |= {"node_id": f"{above}_{unit}_{position}", "layer": above, "jsNodeId": f"L_{unit}-{position}"}
        node |= {"feature_type": "logit", "token_prob": line.probability, "influence": None}
        text = line.name.removeprefix("logit of ")[1:-1]
        node["clerp"] = f'Output "{text}" (p={line.probability:.3f})'
        node["is_target_logit"] = bool(line.probability == graph.nodes.probability.max())
    return node
