"""Which tokens a part of a text became."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interpretune.errors import DataError, TokenizationError
from interpretune.questions.prompt_row import Span, brief

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = Sequence[tuple[int, int]]
"""For each token its first character in the text and the one after its last; equal for a token of no characters."""


def alike_until(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items two sequences have in common from their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def token_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str, tokens: Sequence[int], given: Offsets | None, where: str
) -> Offsets:
    """Characters of each token of a text. Tokens that share a character, such as the bytes of a letter, all have it.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        tokens: Its tokens, without those that the tokenizer adds.
        given: The offsets that a fast tokenizer gives; None: they are found by decoding the tokens.
        where: The row and the prompt, for errors.

    Raises:
        TokenizationError: No offsets are given, and the tokens do not decode to the text.
    """
    if given is None:
        return _decoded_offsets(tokenizer, text, tokens, where)
    offsets: list[tuple[int, int]] = []
    for token, (start, stop) in zip(tokens, given, strict=True):
        piece = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        offsets.append(_with_spaces(text, start, stop, piece, offsets[-1][1] if offsets else 0))
    return offsets


def _with_spaces(text: str, start: int, stop: int, piece: str, last: int) -> tuple[int, int]:
    """The characters of a token with the white space that belongs to it: some tokenizers leave it out of offsets.

    Args:
        text: The text.
        start: The first character that the tokenizer gives.
        stop: The one after the last.
        piece: What the token decodes to.
        last: Where the token before ends.
    """
    inside = text[start:stop]
    if not piece.strip():
        if inside.strip():  # a space that the tokenizer puts before the text
            return start, start
        return (start, stop) if inside else (last, _past_spaces(text, last, len(piece)))
    before = (len(piece) - len(piece.lstrip())) - (len(inside) - len(inside.lstrip()))
    after = (len(piece) - len(piece.rstrip())) - (len(inside) - len(inside.rstrip()))
    while before > 0 and start > last and text[start - 1].isspace():
        start, before = start - 1, before - 1
    return start, _past_spaces(text, stop, after)


def _past_spaces(text: str, stop: int, most: int) -> int:
    while most > 0 and stop < len(text) and text[stop].isspace():
        stop, most = stop + 1, most - 1
    return stop


def _decoded_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str, tokens: Sequence[int], where: str
) -> list[tuple[int, int]]:
    """Offsets from how far the text goes that the first tokens decode to."""
    prefixes = [
        tokenizer.decode(list(tokens[:count]), clean_up_tokenization_spaces=False) for count in range(len(tokens) + 1)
    ]
    if prefixes[-1] != text:
        raise TokenizationError(
            f"{where}: {type(tokenizer).__name__} does not say which characters its tokens stand for, and they decode "
            f"to {brief(prefixes[-1])} instead of the prompt, so that spans cannot be found. Use the fast tokenizer of "
            "the model, or a row without spans."
        )
    ends = [alike_until(prefix, text) for prefix in prefixes]
    offsets = []
    for i in range(len(tokens)):
        start, stop = ends[i], ends[i + 1]
        part_of_letter = stop < len(prefixes[i + 1]) or stop == start  # some of its bytes are in the next token
        offsets.append((start, stop + part_of_letter))
    return offsets


def characters_of(span: Span, name: str, text: str, where: str) -> tuple[int, int]:
    """First character of a span in the text of its prompt, and the one after its last.

    Raises:
        DataError: The span is not in the text, or its text is there twice.
    """
    if isinstance(span, tuple):
        if not 0 <= span[0] < span[1] <= len(text):
            raise DataError(
                f"{where}: the span {name!r} is {span}, which are no characters of the prompt; it has {len(text)}. "
                "Give its first character, counted from 0, and the one after its last."
            )
        return span
    first = text.find(span)
    if first < 0:
        raise DataError(
            f"{where}: the span {name!r} is {brief(span)}, which is not in the prompt. Write it as it stands there, "
            "capital letters and spaces too."
        )
    second = text.find(span, first + 1)
    if second >= 0:
        raise DataError(
            f"{where}: the span {name!r} is {brief(span)}, which stands in the prompt more than once, first at the "
            f"characters {first} and {second}. Say which: {(first, first + len(span))} or "
            f"{(second, second + len(span))}."
        )
    return first, first + len(span)


def tokens_over(start: int, stop: int, offsets: Offsets) -> tuple[int, int] | None:
    """The first token that overlaps characters, and the one after the last that does; None where none does."""
    found = [i for i, (first, end) in enumerate(offsets) if max(first, start) < min(end, stop)]
    return (found[0], found[-1] + 1) if found else None
