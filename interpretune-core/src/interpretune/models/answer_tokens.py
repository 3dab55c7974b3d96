"""The token of each answer: of the word alone, and after the prompt, which can differ."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor

from interpretune.errors import TokenizationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TAIL = 24
"""How many tokens at the end of the prompt are decoded and tokenized again with the answer."""
JOINING = "([{<\"'`/\\-_=@#$"
"""After these characters, a word may follow with or without a space."""
FIRST_WITHOUT_SPACES = 0x2E80
"""Scripts from this code point up, Chinese and Japanese among them, put no spaces between words."""


@frozen
class OtherToken:
    """An answer whose token is not the one that follows the prompt.

    Attributes:
        given: The answer as configured.
        given_id: Its token.
        natural: The answer as it appears after the prompt.
        natural_id: Its token there.
    """

    given: str
    given_id: int
    natural: str
    natural_id: int

    def __str__(self) -> str:
        return f"{self.given!r} (token {self.given_id}) where {self.natural!r} (token {self.natural_id}) follows"


def other_tokens(
    tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], ids: Sequence[int], prompt: Sequence[int]
) -> list[OtherToken]:
    """Answers whose token differs from the one the tokenizer gives for prompt and answer together.

    After a special token an answer may stand with or without a space; after other tokens see ``natural_answer``.
    """
    if not len(prompt) or prompt[-1] in tokenizer.all_special_ids:
        return []
    text: Any = tokenizer.decode(list(prompt)[-TAIL:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    found = []
    for given, given_id in zip(answers, ids, strict=True):
        natural = natural_answer(text, given)
        if natural is None:
            continue
        last = tokenizer.encode(text + natural, add_special_tokens=False)[-1]
        alone: Any = tokenizer.decode([last], clean_up_tokenization_spaces=False)
        if last != given_id and alone.strip() == given.strip():
            found.append(OtherToken(given, given_id, natural, last))
    return found


def natural_answer(text: str, answer: str) -> str | None:
    """The answer as one writes it after the text; None where it may stand with or without a space.

    After a text that ends in a space or a line break, the word itself follows; after any other text, the word with a
    space before it. After a bracket or a quotation mark both are possible, and also for answers in a script without
    spaces, for digits after a digit, and for what begins with neither letter nor digit.
    """
    word = answer.strip()
    if not text or text[-1] in JOINING or not word or not word[0].isalnum():
        return None
    if any(ord(letter) >= FIRST_WITHOUT_SPACES for letter in word) or (text[-1].isdigit() and word[0].isdigit()):
        return None
    return word if text[-1].isspace() else f" {word}"


def warn_of_other_tokens(
    tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], ids: Sequence[int], dataset: Mapping[str, Any]
) -> None:
    """Warn once, with both texts and both tokens, if answers have another token after the first prompt of the data."""
    name = tokenizer.model_input_names[0]
    split = next((item for item in dataset.values() if len(item) and name in getattr(item, "column_names", ())), None)
    if split is None:
        return
    found = other_tokens(tokenizer, answers, ids, split[0][name])
    if found:
        right = tuple(next((item.natural for item in found if item.given == answer), answer) for answer in answers)
        warnings.warn(
            "Answers are looked for at tokens that do not follow the prompt in this tokenizer: "
            f"{'; '.join(map(str, found))}. Set GenerativeClassificationConfig(answers={right!r}).",
            UserWarning,
            stacklevel=2,
        )


def single_token_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """The token of each answer word.

    Raises:
        TokenizationError: A word is not one token in this tokenizer, or is not in its vocabulary; the message shows its
            pieces.
    """
    ids = []
    for word in words:
        pieces = tokenizer.encode(word, add_special_tokens=False)
        if getattr(tokenizer, "unk_token_id", None) in pieces and str(tokenizer.unk_token) not in word:
            raise TokenizationError(
                f"The answer {word!r} is not in this tokenizer's vocabulary: it becomes "
                f"{tokenizer.convert_ids_to_tokens(pieces)}. Use a word that is one token."
            )
        if len(pieces) != 1:
            shown = tokenizer.convert_ids_to_tokens(pieces)
            near = [variant for variant in (word.strip(), f" {word.strip()}") if variant != word]
            single = [v for v in near if len(tokenizer.encode(v, add_special_tokens=False)) == 1]
            raise TokenizationError(
                f"The answer {word!r} is {len(pieces)} tokens in this tokenizer: {shown}. "
                + (f"{single[0]!r} is one token; use it." if single else "Use a word that is one token.")
            )
        ids.append(int(pieces[0]))
    if len(set(ids)) != len(ids):
        raise TokenizationError(f"The answers {list(words)} share a token: ids {ids}. Use words that differ.")
    return ids


def logits_of(logits: Tensor, answers: Tensor) -> Tensor:
    """Logits of each row's answers, minus infinity where a row has fewer.

    Args:
        logits: ``[batch, ..., vocab]``.
        answers: ``[batch, k]``, -1 beyond the last.

    Returns:
        ``[batch, ..., k]``.
    """
    ids = answers.to(logits.device).reshape(len(answers), *[1] * (logits.ndim - 2), -1)
    ids = ids.expand(*logits.shape[:-1], -1)
    return logits.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
