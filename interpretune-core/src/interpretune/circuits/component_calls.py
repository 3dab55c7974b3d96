"""Calls: effects of components and of the edges between them, from clean and corrupted prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from interpretune.activations.hook_names import ATTN_Z, HEAD_INPUTS, MLP_OUT, RESID_PRE, in_layer, split_layer
from interpretune.backends.backend import AnalysisBackend
from interpretune.circuits.component_question import EdgeQuestion, PatchingQuestion
from interpretune.circuits.component_results import ComponentEdges, PatchedNodes
from interpretune.circuits.components import WrittenStream
from interpretune.errors import AnalysisError, ConfigurationError, DataError
from interpretune.latents.identity import IdentityDictionary
from interpretune.operations.objectives import Objective, check_gradient, objective_of
from interpretune.questions.in_words import call_in_words
from interpretune.questions.lenses import vectors
from interpretune.questions.model_and_rows import ModelAndRows, check_count
from interpretune.questions.one_call import check_answers
from interpretune.questions.prompt_row import brief
from interpretune.questions.units import Heads, UnitSet, unit_sets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METHODS = ("eap", "eap_ig")
"""Approximations of edges."""


def node_patching(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Any,
    answers: Any = "answers",
    *,
    correct: Any = "correct",
    units: Any = None,
    objective: Any = "logit_diff",
    batch_size: int = 8,
    row_budget: int | None = None,
    store: str | Path | None = None,
) -> PatchedNodes:
    """Exact effect of setting a component to what it is in the corrupted prompt, at all tokens together.

    This is activation patching: the objective in the clean run minus that with the component's output replaced and
    everything after it computed anew. ``effects(value="corrupted")`` does the same one token at a time.

    Args:
        model: A causal model of transformers, of a library whose adapter is installed, or an ``AnalysisBackend``.
        tokenizer: Its tokenizer.
        prompts: Rows with corrupted prompts; see ``effects``.
        answers: Texts for all rows, or the name of the column that has those of each row.
        correct: The correct answer; see ``effects``.
        units: ``Heads``, ``Neurons``, ``Vector``, one or a list; None: the embedding, all heads, all outputs of MLPs.
        objective: What is measured; see ``effects``.
        batch_size: Rows of one forward.
        row_budget: Most changed rows that run at a time; None: chosen from the free memory.
        store: Folder for the results; None: in memory.

    Returns:
        A store of results, with the tables of ``Effects``.

    Raises:
        AnalysisError: There are no such units, or they are not in a block.
        ConfigurationError: There is no such objective, or a number is out of range.
        DataError: Rows cannot be read, have no corrupted prompts, or the objective is not defined for them.
        TokenizationError: A corrupted prompt has another length.
    """
    call = call_in_words("it.node_patching", node_patching, locals())
    told = {"correct": correct, "objective": objective, "batch_size": batch_size, "row_budget": row_budget}
    found: PatchedNodes = _answered(
        patching_question(model, tokenizer, prompts, answers, units=units, **told), store, call
    )
    return found


def patching_question(
    model: Any, tokenizer: Any, prompts: Any, answers: Any = "answers", *, units: Any = None, **told: Any
) -> PatchingQuestion:
    """What ``node_patching`` is asked, with the same arguments and errors, not answered yet."""
    asked, measured = _asked(model, tokenizer, prompts, answers, **told)
    with asked.held(), torch.no_grad():
        sets = components(asked.backend) if units is None else unit_sets(units, asked.backend)
        for item in sets:
            if not isinstance(item.dictionary, IdentityDictionary) or split_layer(item.dictionary.hook_point) is None:
                raise AnalysisError(
                    f"{item.name} is not in a block of the model as it is. Node patching is of heads, neurons and "
                    "vectors of blocks; layers.0.resid_pre is the embedding, and it.effects changes latents."
                )
        return PatchingQuestion(**asked.parts, sets=sets, objective=measured, row_budget=told.get("row_budget"))


def component_edges(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Any,
    answers: Any = "answers",
    *,
    correct: Any = "correct",
    objective: Any = "logit_diff",
    method: str | Sequence[str] = "eap",
    steps: int = 5,
    exact: int = 0,
    batch_size: int = 8,
    row_budget: int | None = None,
    store: str | Path | None = None,
) -> ComponentEdges:
    """Approximate effects of all edges between heads, MLPs, the embedding and the logits.

    An edge leads from what a node adds to the residual stream to one thing that a later node reads: the queries, keys
    or values of a head, the input of an MLP, the logits. Its effect is what the objective loses when the edge carries
    what the source adds in the corrupted prompt. To first order it is the difference of the two, clean minus corrupted,
    times the gradient of the objective by what the target reads, before the norm, summed over tokens:

    * ``eap``, edge attribution patching (Syed et al. 2023): the gradient is that of the clean run;
    * ``eap_ig`` (Hanna et al. 2024, "inputs"): it is the mean of those of ``steps`` runs whose embeddings lie on the
      straight line from the corrupted prompt to the clean one, in the middles of equal parts of it.

    A norm between attention and the stream (Gemma, OLMo 2) is taken to first order too. Heads that share keys and
    values have each their own edges.

    Args:
        model: A causal model of transformers, of a library whose adapter is installed, or an ``AnalysisBackend``.
        tokenizer: Its tokenizer.
        prompts: Rows with corrupted prompts; see ``effects``.
        answers: Texts for all rows, or the name of the column that has those of each row.
        correct: The correct answer; see ``effects``.
        objective: What is measured; see ``effects``.
        method: ``eap``, ``eap_ig``, or both.
        steps: Runs of ``eap_ig``.
        exact: How many edges are patched exactly too (``path_patching``): those with the largest mean size by the last
            method. All rows run twice then.
        batch_size: Rows of one forward.
        row_budget: Most changed rows that run at a time; None: chosen from the free memory.
        store: Folder for the results; None: in memory.

    Returns:
        A store of results with tables of edges and nodes.

    Raises:
        AnalysisError: Blocks add something else to the stream than heads and MLPs, or share keys.
        ConfigurationError: There is no such objective or method, or a number is out of range.
        DataError: Rows cannot be read, have no corrupted prompts, or the objective is not defined for them.
        HookPointError: The queries, keys and values of heads are not reached in this model.
        TokenizationError: A corrupted prompt has another length.
    """
    call = call_in_words("it.component_edges", component_edges, locals())
    told = {"correct": correct, "objective": objective, "batch_size": batch_size, "row_budget": row_budget}
    question = edge_question(model, tokenizer, prompts, answers, method=method, steps=steps, exact=exact, **told)
    found: ComponentEdges = _answered(question, store, call)
    return found


def edge_question(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    answers: Any = "answers",
    *,
    method: str | Sequence[str] = "eap",
    steps: int = 5,
    exact: int = 0,
    **told: Any,
) -> EdgeQuestion:
    """What ``component_edges`` is asked, with the same arguments and errors, not answered yet."""
    methods = [method] if isinstance(method, str) else list(method)
    if not methods or len(set(methods)) < len(methods) or set(methods) - set(METHODS):
        raise ConfigurationError(f"The method is {method!r}; it is {' or '.join(METHODS)}, or a list of both.")
    check_count("steps", steps)
    if type(exact) is not int or exact < 0:
        raise ConfigurationError(f"exact is {exact!r}; it must be a whole number of edges, and at least 0.")
    asked, measured = _asked(model, tokenizer, prompts, answers, **told)
    if "eap" in methods:
        check_gradient(measured, 'method="eap_ig"')
    with asked.held(), torch.no_grad():
        return _question(asked, measured, told.get("row_budget"), methods=methods, steps=steps, exact=exact)


def path_patching(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Any,
    answers: Any = "answers",
    *,
    edges: Sequence[tuple[str, str]] | pd.DataFrame,
    correct: Any = "correct",
    objective: Any = "logit_diff",
    batch_size: int = 8,
    row_budget: int | None = None,
    store: str | Path | None = None,
) -> ComponentEdges:
    """Exact effects of edges between components (Wang et al. 2022, Goldowsky-Dill et al. 2023).

    The target is computed anew from the clean residual stream in which only what the source wrote is that of the
    corrupted prompt: the nodes between keep their clean values. Everything after the target is computed anew, and reads
    the clean source. The effect is the objective in the clean run minus that.

    Args:
        model: A causal model of transformers, of a library whose adapter is installed, or an ``AnalysisBackend``.
        tokenizer: Its tokenizer.
        prompts: Rows with corrupted prompts; see ``effects``.
        answers: Texts for all rows, or the name of the column that has those of each row.
        edges: Source and target of each. Sources are ``layers.0.resid_pre`` (the embedding), ``layers.3.attn_z head 2``
            and ``layers.3.mlp_out``; targets ``layers.5.attn_q head 1``, ``attn_k`` and ``attn_v`` likewise,
            ``layers.5.mlp_in`` and ``logits``. A data frame with columns ``source`` and ``target``, such as what
            ``ComponentEdges.top`` gives, is taken too.
        correct: The correct answer; see ``effects``.
        objective: What is measured; see ``effects``.
        batch_size: Rows of one forward.
        row_budget: Most changed rows that run at a time; None: chosen from the free memory.
        store: Folder for the results; None: in memory.

    Returns:
        A store of results with a table of edges.

    Raises:
        AnalysisError: There are no such nodes, a source runs after its target, or an edge is named twice.
        ConfigurationError: There is no such objective, a number is out of range, or there are no edges.
        DataError: Rows cannot be read, have no corrupted prompts, or the objective is not defined for them.
        HookPointError: What an edge leads to is not reached in this model.
        TokenizationError: A corrupted prompt has another length.
    """
    call = call_in_words("it.path_patching", path_patching, locals())
    told = {"correct": correct, "objective": objective, "batch_size": batch_size, "row_budget": row_budget}
    found: ComponentEdges = _answered(
        path_question(model, tokenizer, prompts, answers, edges=edges, **told), store, call
    )
    return found


def path_question(
    model: Any, tokenizer: Any, prompts: Any, answers: Any = "answers", *, edges: Any, **told: Any
) -> EdgeQuestion:
    """What ``path_patching`` is asked, with the same arguments and errors, not answered yet."""
    given = _pairs(edges)
    asked, measured = _asked(model, tokenizer, prompts, answers, **told)
    with asked.held(), torch.no_grad():
        stream = WrittenStream.of(asked.backend)
        wanted = [stream.graph.edge(*edge) for edge in given]
        if twice := next((edge for i, edge in enumerate(given) if wanted[i] in wanted[:i]), None):
            raise AnalysisError(f"The edge from {twice[0]!r} to {twice[1]!r} is named twice; name each once.")
        asked.backend.check_hook_points([stream.graph.targets[target].hook_point for _, target in wanted])
        return _question(asked, measured, told.get("row_budget"), stream, exact=wanted)


def _pairs(edges: Any) -> list[tuple[str, str]]:
    """Edges as pairs of names."""
    if isinstance(edges, pd.DataFrame) and {"source", "target"} <= set(edges.columns):
        edges = list(zip(edges.source, edges.target, strict=True))
    given = list(edges) if isinstance(edges, (list, tuple)) else []
    if not given or any(not isinstance(edge, (list, tuple)) or len(edge) != 2 for edge in given):
        raise ConfigurationError(f"edges is {brief(edges)}; give pairs of the names of a source and a target.")
    return [tuple(edge) for edge in given]


def components(backend: AnalysisBackend) -> list[UnitSet]:
    """The embedding, the heads and the outputs of MLPs as unit sets."""
    names = [in_layer(0, RESID_PRE), *(in_layer(layer, MLP_OUT) for layer in range(backend.n_layers))]
    embedding, *mlps = vectors(backend, names)
    return [embedding, *Heads().at(backend), *mlps]


def _answered(question: PatchingQuestion | EdgeQuestion, store: str | Path | None, call: str) -> Any:
    with question.held():
        found = question.answered(store, {"made_by": {"call": call}}, shown=True)
    found.warn_of_noise()
    return found


def _question(
    asked: ModelAndRows, objective: Objective, row_budget: int | None, stream: WrittenStream | None = None, **told: Any
) -> EdgeQuestion:
    backend = asked.backend
    if stream is None:
        stream = WrittenStream.of(backend)
        backend.check_hook_points(
            [in_layer(layer, part) for layer in range(backend.n_layers) for part in (*HEAD_INPUTS, ATTN_Z)]
        )
    return EdgeQuestion(
        **asked.parts,
        sets=components(backend),
        objective=objective,
        row_budget=row_budget,
        stream=stream,
        **{"methods": [], **told},
    )


def _asked(
    model: Any,
    tokenizer: Any,
    prompts: Any,
    answers: Any,
    correct: Any = "correct",
    objective: Any = "logit_diff",
    batch_size: int = 8,
    row_budget: int | None = None,
) -> tuple[ModelAndRows, Objective]:
    measured = objective_of(objective)
    check_count("row_budget", row_budget)
    asked = ModelAndRows.of(model, tokenizer, prompts, answers, correct, batch_size)
    check_answers(measured, asked.rows)
    if (lacking := next((i for i, row in enumerate(asked.rows) if row.corrupted is None), None)) is not None:
        raise DataError(
            f"Row {lacking} has no corrupted prompt, from which changed activations are taken. Give each row one of as "
            "many tokens."
        )
    return asked, measured
