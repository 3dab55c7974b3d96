"""Influence of nodes and edges of an attribution graph on its logits, and what is kept of it.

As in Ameisen et al. 2025, "Circuit Tracing", appendix "Graph pruning", and in circuit-tracer: edges by their size,
those into a node scaled to a sum of 1; influence is what reaches a node from the logits, over all paths.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor


def scaled(edges: Tensor) -> Tensor:
    """Sizes of edges ``[targets, sources]``, those into a target scaled to a sum of 1, or 0 where there are none."""
    sizes = edges.abs()
    sums = sizes.sum(-1, keepdim=True)
    return sizes / sums.where(sums > 0, 1.0)


def influence_of(edges: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
    """Influence of every source on what has weights, over all paths.

    Args:
        edges: ``[targets, sources]``; no circles.
        nodes: Which source each target is, ``[targets]``; -1 where it is none.
        weights: Of the targets, ``[targets]``.

    Returns:
        ``[sources]``.
    """
    sizes, reached = edges.abs(), weights
    sums = sizes.sum(-1)
    sums = sums.where(sums > 0, 1.0)
    total = edges.new_zeros(edges.shape[1])
    while bool(reached.any()):
        arriving = (reached / sums) @ sizes
        total = total + arriving
        reached = arriving[nodes].where(nodes >= 0, 0.0)
    return total


@frozen(eq=False)
class Kept:
    """What pruning keeps of a graph.

    Attributes:
        nodes: ``[n]``, bool.
        edges: ``[n, n]``, bool.
    """

    nodes: Tensor
    edges: Tensor


def pruned(
    edges: Tensor, weights: Tensor, always: Tensor, latents: Tensor, node_share: float, edge_share: float
) -> Kept:
    """Keep the fewest nodes with a share of the influence of all, then the fewest edges between them with a share.

    Nodes to which or from which nothing leads any more go too, over and over.

    Args:
        edges: ``[n, n]``, targets by sources.
        weights: Of the logits, ``[n]``; 0 of other nodes.
        always: Nodes that are kept whatever they do: tokens and logits, ``[n]``, bool.
        latents: Nodes that need an edge to them, ``[n]``, bool.
        node_share: Of the influence of nodes.
        edge_share: Of that of edges.
    """
    everyone = torch.arange(len(edges), device=edges.device)
    influence = influence_of(edges, everyone, weights)
    kept = (influence >= _least(influence, node_share)) & (influence > 0) | always
    between = edges * kept.unsqueeze(-1) * kept
    arriving = influence_of(between, everyone, weights) + weights
    scores = scaled(between) * arriving.unsqueeze(-1)
    edge_kept = (scores >= _least(scores.flatten(), edge_share)) & (scores > 0)
    while True:
        edge_kept = edge_kept & kept.unsqueeze(-1) & kept
        left = kept & (always | edge_kept.any(0)) & (always | ~latents | edge_kept.any(1))
        if bool((left == kept).all()):
            return Kept(kept, edge_kept)
        kept = left


def cumulative(influence: Tensor) -> Tensor:
    """For each node the share of all influence that it has together with all nodes above it, ``[n]``."""
    order = influence.argsort(descending=True, stable=True)
    shares = influence[order].cumsum(0) / influence.sum().clamp(min=1e-300)
    found = shares.new_zeros(len(shares))
    found[order] = shares
    return found


def _least(scores: Tensor, share: float) -> Tensor:
    """The lowest of the fewest highest scores that have a share of the sum of all."""
    ordered = scores.sort(descending=True).values
    reached = ordered.cumsum(0) / ordered.sum().clamp(min=1e-300)
    count = min(int((reached < share).sum()), len(ordered) - 1)
    return ordered[count]
