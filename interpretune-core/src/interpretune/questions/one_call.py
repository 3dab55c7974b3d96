"""One call: what units of a model do to an objective, over rows of prompts and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpretune.errors import ConfigurationError, DataError
from interpretune.operations.objectives import LogitDiff, LogProb, Objective, Prob, check_gradient, objective_of
from interpretune.questions.encoding import EncodedRow, encode
from interpretune.questions.in_words import call_in_words
from interpretune.questions.model_and_rows import ModelAndRows, check_count
from interpretune.questions.question import EFFECTS, Method, Positions, Question
from interpretune.questions.result import Effects
from interpretune.questions.set_values import Value, checked_value
from interpretune.questions.sources import read_rows
from interpretune.questions.units import unit_sets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def effects(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Any,
    answers: Any = "answers",
    *,
    correct: Any = "correct",
    units: Any,
    objective: Any = "logit_diff",
    value: Value = "zero",
    mean_over: Any = None,
    positions: Positions = "answer",
    method: Method = "exact",
    steps: int = 10,
    budget: int | None = None,
    batch_size: int = 8,
    row_budget: int | None = None,
    store: str | Path | None = None,
) -> Effects:
    """Effect of each unit on the objective of each row, by changing the unit at a token of the prompt.

    An effect is the objective in the clean run minus that with the unit changed, everything after it computed anew.
    At the answer position all effects of a batch cost about as much as a forward, since only that token runs again; at
    earlier positions the tokens from there on do.

    Neurons, heads and vectors are changed in the model as it is. Latents are changed in a run in which all given
    dictionaries are spliced in, and their effects are counted from that run.

    Args:
        model: A causal model of transformers, of a library whose adapter is installed, or an ``AnalysisBackend``.
        tokenizer: Its tokenizer.
        prompts: Rows: texts, chats, ``PromptRow``, a data frame, a dataset, or a file; see ``read_rows``.
        answers: Texts for all rows, or the name of the column that has those of each row; ``()`` for rows without.
        correct: Index or text of the correct answer: for all rows, one for each, or the name of a column.
        units: Latent models, ``Latents``, ``Neurons``, ``Heads``, ``Vector``: one or a list.
        objective: ``logit_diff``, ``log_prob``, ``prob``, ``kl``, ``loss``, ``{name: options}``, an ``Objective``, or
            a function of an ``Outcome``.
        value: What units are set to: ``zero``, ``mean`` (over the points of the question, or of ``mean_over``),
            ``corrupted`` (of the row's corrupted prompt), a number, or numbers for each latent by unit set.
        mean_over: Other rows for ``mean``, as ``prompts``.
        positions: Where units are changed: at the ``answer`` position, at each token of a named span, or at ``each``
            token of the prompt; always one token at a time.
        method: ``exact``; ``gradient``: (activation - value) x gradient, to be judged against it; or
            ``integrated_gradients``: the gradient is the mean on the straight line from the value to the activation, on
            which all chosen units of a unit set move together. These add up to the effect of setting all of them.
        steps: Parts of that line, in whose middles gradients are taken.
        budget: Most exact effects of the whole call, of a unit at a token each. Those with the largest gradient effects
            are computed, and the result says what was left out; None: all.
        batch_size: Rows of one forward.
        row_budget: Most changed rows that run at a time; None: chosen from the free memory.
        store: Folder for the results, in which an interrupted call goes on; None: in memory.

    Returns:
        A store of results, with tables and figures. A terminal shows meanwhile how many batches are done.

    Raises:
        AnalysisError: There are no such units, or no such value.
        ConfigurationError: There is no such objective or method, or a number is out of range.
        DataError: Rows cannot be read, lack what is asked for, or the objective is not defined for them.
        HookPointError: A dictionary does not fit the model.
        NotFiniteError: A number is NaN or infinite.
        StoreError: The folder holds other results.
    """
    call = call_in_words("it.effects", effects, locals())
    question = question_of(
        model,
        tokenizer,
        prompts,
        answers,
        correct=correct,
        units=units,
        objective=objective,
        value=value,
        mean_over=mean_over,
        positions=positions,
        method=method,
        steps=steps,
        budget=budget,
        batch_size=batch_size,
        row_budget=row_budget,
    )
    with question.held():
        found: Effects = question.answered(store, {"made_by": {"call": call}}, shown=True)
    found.warn_of_noise()
    return found


def question_of(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Any,
    answers: Any = "answers",
    *,
    correct: Any = "correct",
    units: Any,
    objective: Any = "logit_diff",
    value: Value = "zero",
    mean_over: Any = None,
    positions: Positions = "answer",
    method: Method = "exact",
    steps: int = 10,
    budget: int | None = None,
    batch_size: int = 8,
    row_budget: int | None = None,
) -> Question:
    """What ``effects`` is asked, with the same arguments and errors, not answered yet."""
    measured = objective_of(objective)
    if method not in EFFECTS:
        raise ConfigurationError(f"There is no method {method!r}; there are {', '.join(EFFECTS)}.")
    if method == "gradient" or (method == "exact" and budget is not None):
        check_gradient(measured, 'method="integrated_gradients"')
    for name, number in (("budget", budget), ("row_budget", row_budget), ("steps", steps)):
        check_count(name, number)
    asked = ModelAndRows.of(model, tokenizer, prompts, answers, correct, batch_size)
    check_answers(measured, asked.rows)
    if measured.reads == "row" and positions == "answer" and not any(row.answers for row in asked.rows):
        raise DataError(
            f"The objective is {measured.name} of prompts without answers. Units are set at the last token, which "
            "no loss of the prompt depends on. Change them earlier, with positions='each' or a span, or give answers."
        )
    others = None
    if mean_over is not None:  # where answers play no part
        others = encode(
            read_rows(mean_over, answers=asked.rows[0].row.answers, correct=0), tokenizer, most_tokens=asked.most_tokens
        )
        if not others:
            raise DataError("A mean over no rows: mean_over is empty.")
    given = units if isinstance(units, (list, tuple)) else [units]
    with asked.held(*(getattr(item, "latent_model", item) for item in given)):
        sets = unit_sets(units, asked.backend)
        return Question(
            **asked.parts,
            sets=sets,
            objective=measured,
            value=checked_value(value, sets),
            mean_over=others,
            positions=positions,
            method=method,
            steps=steps,
            budget=budget,
            row_budget=row_budget,
        )


def check_answers(objective: Objective, rows: Sequence[EncodedRow]) -> None:
    """Refuse rows whose answers an objective is not defined for (``DataError``)."""
    for i, row in enumerate(rows):
        if not row.answers and (objective.reads == "answers" or isinstance(objective, (LogProb, Prob))):
            raise DataError(f"Row {i} has no answers, and {objective.name} is of them. Give some, or ask kl or loss.")
        if isinstance(objective, LogitDiff):
            objective.check_answers(len(row.answers), f"Row {i}")
