"""One call: what units of a model do to the units above them, and to an objective."""

from __future__ import annotations

import math
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpretune.circuits.dictionary_order import Order
from interpretune.circuits.node_effects import NodeEffects
from interpretune.circuits.node_question import SAME, NodeQuestion
from interpretune.errors import AnalysisError, ConfigurationError
from interpretune.questions.in_words import call_in_words
from interpretune.questions.one_call import question_of
from interpretune.questions.question import Positions
from interpretune.questions.set_values import Value
from interpretune.questions.units import unit_sets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def effects_on(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Any,
    answers: Any = "answers",
    *,
    correct: Any = "correct",
    units: Any,
    on: Any,
    objective: Any = "logit_diff",
    value: Value = "zero",
    mean_over: Any = None,
    positions: Positions = "answer",
    at: str = SAME,
    direct: bool = False,
    tolerance: float = 1e-3,
    gradient: bool = False,
    budget: int | None = None,
    batch_size: int = 8,
    row_budget: int | None = None,
    store: str | Path | None = None,
) -> NodeEffects:
    """Effect of each unit on the units above it and on the objective, by changing it at a token of the prompt.

    A total effect is the activation of the target in the clean run minus that with the source changed, everything after
    it computed anew: attention, norms, and what the dictionaries in between encode, of which a change may let other
    latents in. The rows that give the effects on the objective are those that give these; nothing runs twice.

    If a source or target is a latent, all given dictionaries are spliced in; else the model runs as it is. What a
    dictionary does not reconstruct is recomputed from the changed input if it has an error term, and absent if it has
    none; direct effects hold both.

    Args:
        model: As for ``effects``.
        tokenizer: As for ``effects``.
        prompts: As for ``effects``.
        answers: As for ``effects``.
        correct: As for ``effects``.
        units: Sources: what is changed, one unit at a time; as for ``effects``.
        on: Targets, likewise; each stands above some source.
        objective: As for ``effects``.
        value: What sources are set to; as for ``effects``.
        mean_over: As for ``effects``.
        positions: Where sources are changed: at the ``answer`` position, at each token of a named span, or at ``each``
            token of the prompt; always one token at a time.
        at: Where effects are read: at the ``same`` token that is changed, at the ``answer`` position, at the tokens of
            a named span, or at ``each`` token; never before the changed one.
        direct: Hold the latents and error terms of all dictionaries above the source at their clean values, so that
            only what bypasses them counts. What a dictionary would read is noted all the same: its latents are targets.
        tolerance: Effects of this size or less, in units of the target's activation, are left out; the result says how
            many, and the size of the largest.
        gradient: Compute gradient effects beside the exact ones, (activation - value) x gradient: one backward for each
            target unit at a token.
        budget: Most changed units, of a unit at a token each: those with the largest gradient effects on the objective.
            The result says how many were left out, and the largest gradient effect among them; None: all.
        batch_size: Rows of one forward.
        row_budget: Most changed rows that run at a time; None: chosen from the free memory.
        store: Folder for the results, in which an interrupted call goes on; None: in memory.

    Returns:
        A store of results: effects on units as tables, and ``on_objective`` with those on the objective.

    Raises:
        AnalysisError: There are no such units or value, a target stands above no source, or nothing could be held.
        ConfigurationError: There is no such objective, or a number is out of range.
        DataError: Rows cannot be read, lack what is asked for, or no effect could be read in one.
        HookPointError: A dictionary does not fit the model.
        NotFiniteError: A number is NaN or infinite.
        StoreError: The folder holds other results.
    """
    call = call_in_words("it.effects_on", effects_on, locals())
    asked = node_question(
        model,
        tokenizer,
        prompts,
        answers,
        on=on,
        at=at,
        direct=direct,
        tolerance=tolerance,
        gradient=gradient,
        correct=correct,
        units=units,
        objective=objective,
        value=value,
        mean_over=mean_over,
        positions=positions,
        budget=budget,
        batch_size=batch_size,
        row_budget=row_budget,
    )
    with asked.held():
        found: NodeEffects = asked.answered(store, {"made_by": {"call": call}}, shown=True)
    found.on_objective.warn_of_noise()
    return found


def node_question(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Any,
    answers: Any = "answers",
    *,
    on: Any,
    at: str = SAME,
    direct: bool = False,
    tolerance: float = 1e-3,
    gradient: bool = False,
    **asked: Any,
) -> NodeQuestion:
    """What ``effects_on`` is asked, with the same arguments and errors, not answered yet."""
    if not isinstance(tolerance, Real) or isinstance(tolerance, bool) or not 0 <= tolerance < math.inf:
        raise ConfigurationError(
            f"tolerance is {tolerance!r}; it is the size of the largest effect that is left out: 0, or "
            "a finite number above."
        )
    given = on if isinstance(on, (list, tuple)) else [on]
    if not given:
        raise AnalysisError("There are no units that effects could be on: on is an empty list.")
    question = question_of(model, tokenizer, prompts, answers, **asked)
    with question.held(*(getattr(item, "latent_model", item) for item in given)):
        targets = unit_sets(on, question.backend)
        order = Order.of(question.backend, [*question.sets, *targets])
        order.check_targets(question.sets, targets)
        found = NodeQuestion(
            **question.parts,
            on=targets,
            order=order,
            at=at,
            held_by=order.held(question.sets) if direct else {},
            tolerance=float(tolerance),
            gradient=gradient,
        )
        found.check_spans()
        return found
