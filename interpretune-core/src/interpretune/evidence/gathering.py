"""Evidence of a question's effects: gathered where the model is, and kept in the store of the effects."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from attrs import frozen

from interpretune.errors import AnalysisError, ConfigurationError
from interpretune.evidence.cards import cards_of
from interpretune.evidence.chosen import top_units
from interpretune.evidence.facts import PromptTokens
from interpretune.evidence.held_out import held_out_proof
from interpretune.evidence.steering import ends_of, steered
from interpretune.evidence.stored import Evidence, keys_of, read_parts, write_part
from interpretune.hashing.content_hash import hash_of
from interpretune.questions.encoding import EncodedRow, encode
from interpretune.questions.question import EFFECTS, Question
from interpretune.questions.result import Effects
from interpretune.questions.sources import read_rows


def evidence_of(
    effects: Effects,
    *,
    held_out: Any = None,
    answers: Any = "answers",
    correct: Any = "correct",
    top: int = 5,
    cards: int = 10,
    steer: int = 4,
    new_tokens: int = 12,
    seed: int = 0,
) -> Evidence:
    """Gather what convinces of effects: proof on held-out rows, cards of the top units, steered continuations.

    What was gathered before with the same settings is taken from the store of the effects, where each part is written
    when it is whole.

    Args:
        effects: What ``effects`` returned in this process: it knows the model and the question.
        held_out: Rows that are none of the question's, as ``effects`` takes them; None: no proof.
        answers: Texts for all held-out rows, or the name of the column that has those of each row.
        correct: The correct answer of held-out rows, likewise.
        top: How many units are changed together, on held-out rows and in continuations.
        cards: How many units get cards.
        steer: How many rows are continued, the first held-out ones, or of the question where there are none.
        new_tokens: Most tokens of a continuation.
        seed: Of the other units that are drawn for control.

    Returns:
        The evidence, also kept in ``effects.store``.

    Raises:
        AnalysisError: The effects were not asked in this process, or are not of changed units.
        ConfigurationError: A number is out of range.
        DataError: Held-out rows cannot be read, are rows of the question, or have no two answers.
        StoreError: The store cannot be written.
    """
    with question_asked(effects).held(), torch.no_grad():
        jobs = _jobs(
            effects,
            held_out=held_out,
            answers=answers,
            correct=correct,
            top=top,
            cards=cards,
            steer=steer,
            new_tokens=new_tokens,
            seed=seed,
        )
        for job in jobs:
            if not job.done:
                write_part(effects.store, job.part, job.key, job.gather())
        return Evidence(**read_parts(effects.store, [job.part for job in jobs]))


def parts_to_gather(effects: Effects, **settings: Any) -> list[str]:
    """The parts that ``evidence_of`` would gather, since they are not in the store."""
    return [job.part for job in _jobs(effects, **settings) if not job.done]


def seconds_of(effects: Effects, parts: Collection[str], **settings: Any) -> dict[str, float]:
    """Gather parts, keep nothing, and tell how long each took."""
    assert effects.asked is not None
    found = {}
    with effects.asked.held(), torch.no_grad():
        for job in _jobs(effects, **settings):
            if job.part in parts:
                start = time.perf_counter()
                job.gather()
                found[job.part] = time.perf_counter() - start
    return found


@frozen(eq=False)
class _Job:
    """A part of the evidence: the key of its settings, whether it is there, and what gathers it."""

    part: str
    key: str
    done: bool
    gather: Callable[[], Any]


def _jobs(
    effects: Effects,
    *,
    held_out: Any,
    top: int,
    cards: int,
    steer: int,
    new_tokens: int,
    seed: int,
    answers: Any = "answers",
    correct: Any = "correct",
) -> list[_Job]:
    """What ``evidence_of`` does, which raises what this does."""
    question = question_asked(effects)
    for name, number in (("top", top), ("cards", cards), ("steer", steer), ("new_tokens", new_tokens)):
        least = 0 if name in ("cards", "steer") else 1
        if type(number) is not int or number < least:
            raise ConfigurationError(f"{name} is {number!r}; it must be a whole number, and at least {least}.")
    rows = None if held_out is None else held_out_rows(question, held_out, answers, correct) or None
    units = top_units(question, effects, max(top, cards))
    continued = (question.rows if rows is None else rows)[:steer]
    there, in_memory, jobs = keys_of(effects.store), effects.store.folder is None, []

    def add(part: str, settings: Sequence[Any], gather: Callable[[], Any]) -> None:
        key = "" if in_memory else key_of(question, settings)
        jobs.append(_Job(part, key, bool(key) and there.get(part) == key, gather))

    with question.held():
        if units and rows is not None:
            add("held_out", [rows, top, seed], lambda: held_out_proof(question, effects, rows, units[:top], seed))
        if units and cards:
            add("cards", [cards], lambda: cards_of(question, effects, units[:cards]))
        if any(item.units.kind == "latent" for item in units[:cards]):
            add("prompts", [], lambda: prompts_of(question))
        if units and continued:
            told = [continued, top, new_tokens, str(sorted(ends_of(question)))]
            add("steering", told, lambda: steered(question, continued, units[:top], new_tokens))
    return jobs


def prompts_of(question: Question) -> PromptTokens:
    """The prompts of a question in tokens."""
    return PromptTokens(tuple(tuple(row.tokens.tolist()) for row in question.rows), question.pad)


def question_asked(effects: Effects) -> Question:
    """The question of effects of changed units, which was asked in this process.

    Raises:
        AnalysisError: It was not, or the effects are of another kind.
    """
    question = effects.asked
    if question is None or effects.question["method"] not in EFFECTS:
        raise AnalysisError(
            f"The effects of {effects.store} were not asked in this process, so that their model is unknown. Ask again "
            "with the same store: what is there is not computed anew."
            if question is None
            else "Units are changed one token at a time here; these effects go straight to the logits, or are of all "
            "tokens together. Ask it.effects."
        )
    return question


def held_out_rows(question: Question, held_out: Any, answers: Any, correct: Any) -> list[EncodedRow]:
    """Held-out rows in the tokens of a question's model; the arguments are those of ``evidence_of``.

    Raises:
        DataError: They cannot be read.
    """
    given = read_rows(held_out, answers=answers, correct=correct)
    return encode(given, question.tokenizer, most_tokens=question.most_tokens)


def key_of(question: Question, settings: Sequence[Any]) -> str:
    """Hash of a question and of settings, among which there may be encoded rows."""
    told = [[_told(row) for row in item] if isinstance(item, (list, tuple)) else item for item in settings]
    return hash_of([question.key, told], "Evidence")


def _told(row: Any) -> Any:
    if not isinstance(row, EncodedRow):
        return row
    return [row.tokens, row.corrupted, row.answers, row.correct, dict(row.spans)]
