"""Attribution graphs with transcoders: of one prompt, in a model whose attention patterns and norms are held."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from attrs import frozen
from torch import Tensor

from interpretune.activations.hook_names import FINAL_NORM
from interpretune.activations.inputs import ModelInputs
from interpretune.backends.backend import AnalysisBackend
from interpretune.backends.direct_paths import logit_scale
from interpretune.circuits.graph import AskedGraph, AttributionGraph, LeftOut, scores_of
from interpretune.circuits.linear_run import LinearRun, Targets
from interpretune.circuits.pruning import cumulative, influence_of
from interpretune.circuits.stream_sources import Sources, layer_of_transcoder
from interpretune.errors import AnalysisError, ConfigurationError
from interpretune.latents.latent_model import LatentModel
from interpretune.questions.model_and_rows import ModelAndRows, check_count
from interpretune.questions.prompt_row import Prompt, PromptRow, brief
from interpretune.system.torch_state import frozen_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def attribution_graph(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt | PromptRow,
    *,
    transcoders: Sequence[LatentModel],
    answers: str | Sequence[str] | None = None,
    max_logits: int = 10,
    logit_share: float = 0.95,
    max_nodes: int = 2000,
    batch_size: int = 32,
) -> AttributionGraph:
    """Direct linear effects between tokens, latents of transcoders, their errors, and logits of the next token.

    MLPs are replaced by the transcoders and by what these leave unexplained; attention patterns and the scales of norms
    are held, and skip connections of transcoders pass on what they read. What is left is linear, and an edge is the
    part of the target that the source brings about straight, past all other latents: activation of the source times
    what it writes, times the slope of the target there. The edges into a latent, and a constant from biases, add up to
    its activation (Ameisen et al. 2025, "Circuit Tracing").

    Logits are centred: the logit of the token minus the mean of all, before a soft cap.

    Args:
        model: A causal model of transformers, of a library whose adapter is installed, or an ``AnalysisBackend``.
        tokenizer: Its tokenizer.
        prompt: One prompt: a text, chat messages, or a ``PromptRow``.
        transcoders: Dictionaries that read what an MLP reads and write ``mlp_out``, one a layer; or the parts of a
            cross-layer transcoder. Whole outputs of MLPs without one are nodes, to which nothing leads.
        answers: Texts whose first tokens are the logits; None: those of a ``PromptRow``, or the most probable tokens.
        max_logits: Most logits of the most probable tokens.
        logit_share: Of the probability, for which these are enough.
        max_nodes: Most latents; those with the most influence on the logits are taken, and the result says how much
            influence the others have.
        batch_size: How many targets go through one backward.

    Returns:
        The graph, unpruned; see ``AttributionGraph.prune`` and ``AttributionGraph.exact_effects``.

    Raises:
        AnalysisError: A dictionary is no transcoder or has no linear decoder; or the model, all these things held, is
            not linear.
        ConfigurationError: A number is out of range, or there are no transcoders.
        DataError: The prompt cannot be read.
        HookPointError: A dictionary does not fit the model, or the model's attention patterns are out of reach.
    """
    for name, number in (("max_logits", max_logits), ("max_nodes", max_nodes)):
        check_count(name, number)
    if not 0 < logit_share <= 1:
        raise ConfigurationError(
            f"logit_share is {logit_share!r}; it is a share of the probability: above 0, at most 1."
        )
    alone = isinstance(transcoders, LatentModel) or not isinstance(transcoders, Iterable)
    models: list[Any] = [transcoders] if alone else list(transcoders)
    if not models or not all(isinstance(item, LatentModel) for item in models):
        raise ConfigurationError(
            f"transcoders is {brief(transcoders)}; give latent models: transcoders, or the parts of a cross-layer "
            "transcoder."
        )
    given: Any = (answers,) if isinstance(answers, str) else answers
    if given is None:
        given = "answers" if isinstance(prompt, PromptRow) and prompt.answers else ()
    asked = ModelAndRows.of(model, tokenizer, [prompt], given, 0, batch_size)
    backend, row = asked.backend, asked.rows[0]
    models.sort(key=layer_of_transcoder)
    layers = [layer_of_transcoder(item) for item in models]
    if len(set(layers)) < len(layers):
        raise AnalysisError(
            f"The dictionaries read in layers {layers}: two in one layer, where a graph has one. Leave one out."
        )
    with asked.held(*models), frozen_parameters(backend.model, *models):
        backend.check_latent_models(models)
        tokens = row.tokens.to(backend.model_device).unsqueeze(0)
        inputs = ModelInputs(tokens, torch.ones_like(tokens))
        run = LinearRun(backend, inputs, models, batch_size)
        sources = Sources(backend, inputs, models, run)
        chosen = _logits(run, [ids[0] for ids in row.answers], max_logits, logit_share)
        return _graph(AskedGraph(backend, tokenizer, inputs, sources, batch_size), run, chosen, max_nodes)


@frozen(eq=False)
class _Logits:
    """The tokens that are targets, ``k`` of them.

    Attributes:
        ids: ``[k]``.
        probabilities: ``[k]``, float64.
        values: Their centred logits, ``[k]``, float64.
        vectors: Slopes of these by what the last norm makes, ``[k, d_model]``.
    """

    ids: Tensor
    probabilities: Tensor
    values: Tensor
    vectors: Tensor


def _logits(run: LinearRun, given: Sequence[int], most: int, share: float) -> _Logits:
    probabilities = run.logits[0].double().softmax(-1)
    if given:
        ids = torch.tensor(list(dict.fromkeys(given)), device=run.logits.device)
    else:
        top = probabilities.topk(min(most, len(probabilities)))
        enough = int((top.values.cumsum(0) < share).sum()) + 1
        ids = top.indices[:enough]
    with torch.enable_grad():
        normed = run.clean[FINAL_NORM][:, -1].clone().requires_grad_()
        raw = run.backend.unembed(normed, before_cap=True)
        raw = raw * logit_scale(raw.detach(), run.logits)
        centred = raw[0, ids] - raw.mean()
        vectors = [torch.autograd.grad(item, [normed], retain_graph=True)[0][0] for item in centred]
    return _Logits(ids, probabilities[ids], centred.detach().double(), torch.stack(vectors))


@frozen(eq=False)
class _Reached:
    """Edges of the targets that were followed: of the logits, then of latents, those with most influence first.

    Attributes:
        latents: The latents among them, ``[t]``, as sources.
        edges: ``[k + t, n]``, targets by sources.
        influence: Of every source, ``[n]``.
    """

    latents: Tensor
    edges: Tensor
    influence: Tensor


def _reached(sources: Sources, run: LinearRun, logits: _Logits, most: int, size: int) -> _Reached:
    """Follow edges back from the logits, to the latents with the most influence."""
    weights, most = logits.probabilities.cpu(), min(most, sources.n_latents)
    edges = torch.empty(len(weights) + most, sources.n, dtype=torch.float64)
    starts = torch.cat([weights, torch.zeros(most, dtype=torch.float64)])
    nodes, count = torch.full((len(starts),), -1), 0

    def follow(targets: Targets) -> None:
        edges[count : count + len(targets)] = sources.edges(run.slopes(targets))

    for part in logits.vectors.split(size):
        follow(sources.logit_targets(part))
        count += len(part)
    while True:
        influence = influence_of(edges[:count], nodes[:count], starts[:count])
        latents = nodes[len(weights) : count]
        left = influence[: sources.n_latents].index_fill(0, latents, 0.0)
        best = left.argsort(descending=True, stable=True)[: min(size, len(starts) - count)]
        best = best[left[best] > 0]
        if not len(best):  # all are there, or nothing leads from the others to the logits
            return _Reached(latents, edges[:count], influence)
        follow(sources.latent_targets(best.to(sources.ids.device), size))
        nodes[count : count + len(best)] = best
        count += len(best)


def _graph(asked: AskedGraph, run: LinearRun, logits: _Logits, max_nodes: int) -> AttributionGraph:
    sources = asked.sources
    n_latents, values = sources.n_latents, sources.activations.double().cpu()
    found = _reached(sources, run, logits, max_nodes, asked.batch_size)
    taken, reached, n_logits = found.latents, found.influence, len(logits.ids)
    chosen = taken.sort().values
    others = torch.ones(n_latents, dtype=torch.bool).index_fill(0, taken, value=False)
    of_latents = float(reached[:n_latents].sum())
    left_out = LeftOut(
        active=n_latents,
        latents=int((reached[:n_latents][others] > 0).sum()),
        influence=float(reached[:n_latents][others].sum()) / of_latents if of_latents else 0.0,
    )
    columns = torch.cat([chosen, torch.arange(n_latents, sources.n)])
    n = len(columns) + n_logits
    by_node = torch.cat([taken.argsort() + n_logits, torch.arange(n_logits)])  # rows in the order of nodes
    targets = found.edges[by_node]
    adjacency = torch.zeros(n, n, dtype=torch.float64)
    at = torch.cat([torch.arange(len(chosen)), torch.arange(len(columns), n)])
    adjacency[at, : len(columns)] = targets[:, columns]
    own = torch.full((n,), math.nan, dtype=torch.float64)
    own[at] = torch.cat([values[chosen], logits.values.cpu()])
    nodes = _nodes(asked, chosen, logits)
    nodes["activation"] = own.numpy()
    dropped = torch.full_like(own, math.nan)
    dropped[at] = targets[:, :n_latents][:, others].sum(-1)
    constant = torch.full_like(own, math.nan)
    constant[at] = own[at] - targets.sum(-1)
    everyone = torch.cat([reached[columns], torch.zeros(n_logits, dtype=torch.float64)])
    nodes["left_out"], nodes["constant"], nodes["influence"] = dropped.numpy(), constant.numpy(), everyone.numpy()
    nodes["cumulative"] = cumulative(everyone).numpy()
    return AttributionGraph(
        prompt=str(asked.tokenizer.decode(asked.inputs.tokens[0])),
        tokens=tuple(str(asked.tokenizer.decode([int(token)])) for token in asked.inputs.tokens[0]),
        model=_name_of(asked.backend),
        n_layers=asked.backend.n_layers,
        dictionaries=tuple(item.name for item in sources.models),
        unexplained=tuple(sources.unexplained),
        left_out=left_out,
        nodes=nodes,
        adjacency=adjacency,
        logit_vectors=logits.vectors,
        scores=scores_of(nodes, adjacency),
        asked=asked,
    )


def _nodes(asked: AskedGraph, chosen: Tensor, logits: _Logits) -> pd.DataFrame:
    """A line for each node: latents, then errors, tokens and logits."""
    sources, n_layers, tokenizer = asked.sources, asked.backend.n_layers, asked.tokenizer
    ids = asked.inputs.tokens[0].tolist()
    lines: list[dict[str, Any]] = []
    which = chosen.to(sources.ids.device)
    of_latents = (item[which].tolist() for item in (sources.model, sources.positions, sources.ids))
    for node, index, position, unit in zip(chosen.tolist(), *of_latents, strict=True):
        name = f"{sources.models[index].name} latent {unit}"
        lines.append(_line("latent", sources.layers[index], position, unit, name, node))
    for layer in range(n_layers):
        kind, name = "error", f"error of layer {layer}"
        if layer in sources.unexplained:
            kind, name = "mlp", f"MLP of layer {layer}"
        first = sources.n_latents + layer * len(ids)
        lines += [_line(kind, layer, position, -1, name, first + position) for position in range(len(ids))]
    first = sources.n_latents + n_layers * len(ids)
    for position, token in enumerate(ids):
        lines.append(_line("token", -1, position, token, repr(tokenizer.decode([token])), first + position))
    for token in logits.ids.tolist():
        name = f"logit of {tokenizer.decode([token])!r}"
        lines.append(_line("logit", n_layers, len(ids) - 1, token, name, -1))
    found = pd.DataFrame(lines)
    found["probability"] = [*[math.nan] * (len(found) - len(logits.ids)), *logits.probabilities.tolist()]
    return found


def _line(kind: str, layer: int, position: int, unit: int, name: str, source: int) -> dict[str, Any]:
    return {"kind": kind, "layer": layer, "position": position, "unit": unit, "name": name, "source": source}


def _name_of(backend: AnalysisBackend) -> str:
    """The name of the model, without the folder that it lies in."""
    config = getattr(backend.model, "config", None)
    return Path(str(getattr(config, "name_or_path", "") or type(backend.model).__name__)).name
