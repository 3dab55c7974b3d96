"""The tokens of answers as they follow their prompts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any

from attrs import frozen

from interpretune.errors import TokenizationError
from interpretune.models.answer_tokens import natural_answer
from interpretune.questions.token_spans import alike_until

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHORS = ("\n", ":")
"""Texts after which an answer is tokenized, for tokenizers that put a space before a text that stands alone."""


@frozen
class Asked:
    """A prompt and the answers that may follow it.

    Attributes:
        where: The row and the end of its prompt, for errors.
        text: The prompt as the tokenizer reads it.
        tokens: Its tokens, without those that the tokenizer adds.
        answers: The answers.
    """

    where: str
    text: str
    tokens: Sequence[int]
    answers: Sequence[str]


def plain_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, without those that the tokenizer adds."""
    if not texts:
        return []
    found: Any = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [list(map(int, tokens)) for tokens in found]


def answer_ids(tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked]) -> list[tuple[tuple[int, ...], ...]]:
    """The tokens of every answer of every prompt.

    They are what prompt and answer together have after the tokens of the prompt. Where the tokenizer joins the end of
    the prompt with the answer, they are the tokens of the answer alone, without a space that the tokenizer puts before
    it; one warning tells of the first such answer, and one of the first answer that lacks the space before it, or has
    one after a space.

    Raises:
        TokenizationError: An answer has no tokens or is not in the vocabulary, or another one begins with its tokens.
    """
    pairs = [(one, answer) for one in asked for answer in one.answers]
    joint = plain_tokens(tokenizer, [one.text + answer for one, answer in pairs])
    after = {
        (one.where, answer): _after(one.tokens, tokens) for (one, answer), tokens in zip(pairs, joint, strict=True)
    }
    found, joined = [], None
    for one in asked:
        ids = []
        for answer in one.answers:
            tokens = after[one.where, answer]
            if tokens is None:
                tokens = _alone(tokenizer, answer)
                joined = joined or (one, answer, tokens)
            _check_answer(tokenizer, tokens, answer, one)
            ids.append(tokens)
        _check_apart(tokenizer, ids, one)
        found.append(tuple(ids))
    unnatural = _first_unnatural(tokenizer, asked, found)
    if unnatural:
        warnings.warn(unnatural, UserWarning, stacklevel=3)
    elif joined:
        warnings.warn(_joined(tokenizer, *joined), UserWarning, stacklevel=3)
    return found


def _after(prompt: Sequence[int], joint: Sequence[int]) -> tuple[int, ...] | None:
    """What stands after the prompt; None where its tokens are others than alone."""
    return tuple(joint[len(prompt) :]) if list(joint[: len(prompt)]) == list(prompt) else None


def _alone(tokenizer: PreTrainedTokenizerBase, answer: str) -> tuple[int, ...]:
    alone, *rest = plain_tokens(tokenizer, [answer, *(text for one in ANCHORS for text in (one, one + answer))])
    for anchor, joint in zip(rest[::2], rest[1::2], strict=True):
        tokens = _after(anchor, joint)
        if anchor and tokens is not None:
            return tokens
    return tuple(alone)


def _check_answer(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], answer: str, one: Asked) -> None:
    if not tokens:
        raise TokenizationError(
            f"{one.where}: the answer {answer!r} has no tokens after this prompt, so nothing is looked for. Use a text "
            "that the tokenizer keeps."
        )
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown in tokens and str(tokenizer.unk_token) not in answer:
        raise TokenizationError(
            f"{one.where}: the answer {answer!r} is not in this tokenizer's vocabulary: it becomes "
            f"{_pieces(tokenizer, tokens)}. Use one that is."
        )


def _check_apart(tokenizer: PreTrainedTokenizerBase, ids: Sequence[tuple[int, ...]], one: Asked) -> None:
    for short, long in permutations(range(len(ids)), 2):
        if ids[long][: len(ids[short])] == ids[short]:
            same = len(ids[short]) == len(ids[long])
            raise TokenizationError(
                f"{one.where}: the answer {one.answers[short]!r} {_spelt(tokenizer, ids[short])} "
                f"{'has the tokens of' if same else 'is how the tokens begin of'} the answer {one.answers[long]!r} "
                f"{_spelt(tokenizer, ids[long])}, so that they cannot be told apart. Answers may begin alike, but each "
                "must have a token where the others have another one."
            )


def _first_unnatural(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked], found: Sequence[Sequence[tuple[int, ...]]]
) -> str | None:
    seen = set()
    for one, ids in zip(asked, found, strict=True):
        if one.tokens[-1] in tokenizer.all_special_ids:
            continue
        for answer, tokens in zip(one.answers, ids, strict=True):
            natural = natural_answer(one.text, answer)
            if natural is None or natural == answer or (answer, one.text[-1]) in seen:
                continue
            seen.add((answer, one.text[-1]))
            if one.text[-1] == answer[0] == " ":
                return (
                    f"{one.where}: the prompt ends with a space and the answer {answer!r} begins with one, which are "
                    "two in a row. Take the space away from the end of the prompt."
                )
            there = _after(one.tokens, plain_tokens(tokenizer, [one.text + natural])[0])
            if there and there != tokens:
                return (
                    f"{one.where}: the answer {answer!r} {_spelt(tokenizer, tokens)} is looked for where {natural!r} "
                    f"{_spelt(tokenizer, there)} follows in this tokenizer. If you mean that, write {natural!r}."
                )
    return None


def _joined(tokenizer: PreTrainedTokenizerBase, one: Asked, answer: str, tokens: Sequence[int]) -> str:
    both = plain_tokens(tokenizer, [one.text + answer])[0]
    same = alike_until(one.tokens, both)
    return (
        f"{one.where}: the tokenizer joins the end of the prompt {_spelt(tokenizer, one.tokens[same:])} with the "
        f"answer {answer!r}: together they are {_spelt(tokenizer, both[same:])}. The answer is looked for as it stands "
        f"alone, {_spelt(tokenizer, tokens)}, which the model may hardly ever have seen there. Move a space from the "
        "end of the prompt to the beginning of the answers, or end the prompt where a word ends."
    )


def _spelt(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return f"({len(tokens)} token{'s' * (len(tokens) != 1)}: {_pieces(tokenizer, tokens)}, ids {list(tokens)})"


def _pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    return list(map(str, tokenizer.convert_ids_to_tokens(list(tokens))))
