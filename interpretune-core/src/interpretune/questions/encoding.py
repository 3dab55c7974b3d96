"""Rows of a question in tokens: the prompt, what its answers are after it, and where its spans are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor

from interpretune.errors import DataError, TokenizationError
from interpretune.questions.answer_ids import Asked, answer_ids, plain_tokens
from interpretune.questions.prompt_row import Prompt, PromptRow, brief
from interpretune.questions.token_spans import alike_until, characters_of, token_offsets, tokens_over

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@frozen(eq=False)
class EncodedRow:
    """A row in the tokens of one tokenizer, without padding.

    Attributes:
        row: What the tokens were made from.
        tokens: The prompt, ``[pos]``, int64; the answer follows its last token.
        answers: The tokens of each answer after the prompt, one or more; no answer begins with all those of another.
        correct: Index of the correct answer; -1 where there is none.
        corrupted: The corrupted prompt, ``[pos]``, of as many tokens; None where the row has none.
        spans: For each span its first token and the one after its last, of all tokens that overlap it.
    """

    row: PromptRow
    tokens: Tensor
    answers: tuple[tuple[int, ...], ...]
    correct: int
    corrupted: Tensor | None
    spans: Mapping[str, tuple[int, int]]


@frozen
class _Cut:
    """A prompt as the tokenizer reads it: its text, the tokens of that, and those which the tokenizer puts before."""

    text: str
    plain: list[int]
    before: list[int]

    @property
    def tokens(self) -> list[int]:
        return [*self.before, *self.plain]


def encode(
    rows: Iterable[PromptRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_special_tokens: bool = True,
    most_tokens: int | None = None,
) -> list[EncodedRow]:
    """Tokenize rows.

    Chat messages go through the chat template, which writes the special tokens that the model expects; none are added
    to them. Special tokens that a tokenizer puts at the end of a text are left out, for there the answer follows.

    The tokens of an answer are those that prompt and answer together have after those of the prompt. Where a tokenizer
    joins the end of the prompt with the answer, they are those of the answer alone, and a warning says so once.

    Args:
        rows: The rows.
        tokenizer: The tokenizer of the model.
        add_special_tokens: Put the special tokens of the tokenizer, such as BOS, before prompts that are texts.
        most_tokens: How many tokens the model may read in a row: the prompt and all but the last of the longest answer.

    Returns:
        The rows in their order.

    Raises:
        DataError: A row is no ``PromptRow``; a span is not in its prompt, or there twice; the tokenizer has no chat
            template for chat messages.
        TokenizationError: A prompt or an answer has no tokens; a row is too long; an answer begins with all tokens of
            another; a corrupted prompt has another length.
    """
    given = _checked(rows)
    told = [f"Row {i}, {row.told.removeprefix('the row ')}" for i, row in enumerate(given)]
    both: list[tuple[str, Prompt]] = [(where, row.prompt) for where, row in zip(told, given, strict=True)]
    changed = [i for i, row in enumerate(given) if row.corrupted is not None]
    both += [(f"The corrupted prompt of row {i}", given[i].corrupted or "") for i in changed]
    cuts = _cut(both, tokenizer, add_special_tokens)
    corrupted = dict(zip(changed, cuts[len(given) :], strict=True))
    asked = [Asked(where, cut.text, cut.plain, row.answers) for where, cut, row in zip(told, cuts, given, strict=False)]
    encoded = []
    for i, ids in enumerate(answer_ids(tokenizer, asked)):
        cut, where = cuts[i], told[i]
        _check_length(len(cut.tokens), max(map(len, ids), default=1), most_tokens, where)
        if i in corrupted:
            _check_same_length(cut.tokens, corrupted[i].tokens, tokenizer, where)
        encoded.append(
            EncodedRow(
                row=given[i],
                tokens=torch.tensor(cut.tokens),
                answers=ids,
                correct=given[i].correct if ids else -1,
                corrupted=torch.tensor(corrupted[i].tokens) if i in corrupted else None,
                spans=_spans(given[i], cut, tokenizer, where),
            )
        )
    return encoded


def _checked(rows: Any) -> list[PromptRow]:
    if not isinstance(rows, Iterable) or isinstance(rows, str | Mapping):
        raise DataError(f"The rows are {brief(rows)}; give a list of PromptRow.")
    given = list(rows)
    for i, row in enumerate(given):
        if not isinstance(row, PromptRow):
            raise DataError(
                f"Row {i} is {brief(row)}, which is no PromptRow. interpretune.questions.read_rows makes them from "
                "texts, mappings, tables and files."
            )
    return given


def _cut(
    prompts: Sequence[tuple[str, Prompt]], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool
) -> list[_Cut]:
    texts = [_text(prompt, tokenizer, where) for where, prompt in prompts]
    cuts = [_Cut(text, tokens, []) for text, tokens in zip(texts, plain_tokens(tokenizer, texts), strict=True)]
    for cut, (where, _) in zip(cuts, prompts, strict=True):
        if not cut.plain:
            raise TokenizationError(
                f"{where}: the prompt {brief(cut.text)} has no tokens, and an answer needs one to follow. Write a text."
            )
    bare = [i for i, (_, prompt) in enumerate(prompts) if isinstance(prompt, str)] if add_special_tokens else []
    if bare:
        whole: Any = tokenizer([texts[i] for i in bare], verbose=False)["input_ids"]
        for i, tokens in zip(bare, whole, strict=True):
            cuts[i].before[:] = _before(list(tokens), cuts[i].plain, prompts[i][0])
    return cuts


def _before(whole: Sequence[int], plain: Sequence[int], where: str) -> Sequence[int]:
    """What the tokenizer puts before the tokens of a text: all before the last place where they are, as in BOS BOS."""
    for start in range(len(whole) - len(plain), -1, -1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    raise TokenizationError(
        f"{where}: the tokenizer cuts the prompt in another way when it adds special tokens: {list(whole)} instead of "
        f"{list(plain)} with more around it. Write the special tokens into the prompts and use "
        "add_special_tokens=False."
    )


def _text(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    if isinstance(prompt, str):
        return prompt
    messages = [dict(message) for message in prompt]
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where}: the prompt is chat messages, and {type(tokenizer).__name__} has no chat template. Use the "
            "tokenizer of a chat model, set its chat_template, or write the prompt as a text."
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # templates are programs, which raise whatever they like
        raise DataError(
            f"{where}: the chat template of the tokenizer does not take these messages: {type(error).__name__}: "
            f"{error}. Use the roles and the order of messages that the model was trained on."
        ) from error


def _check_length(prompt: int, answer: int, most_tokens: int | None, where: str) -> None:
    if most_tokens is not None and prompt + answer - 1 > most_tokens:
        longest = f" and all but the last of the {answer} of its longest answer" if answer > 1 else ""
        raise TokenizationError(
            f"{where}: the model would read {prompt} tokens of the prompt{longest}, and the most is {most_tokens}. "
            "Shorten the row, leave it out, or raise the limit if the model's context allows it."
        )


def _check_same_length(
    clean: Sequence[int], corrupted: Sequence[int], tokenizer: PreTrainedTokenizerBase, where: str
) -> None:
    if len(clean) == len(corrupted):
        return
    start = alike_until(clean, corrupted)
    same = alike_until(clean[start:][::-1], corrupted[start:][::-1])
    pieces = [
        tokenizer.convert_ids_to_tokens(list(tokens[start : len(tokens) - same])) for tokens in (clean, corrupted)
    ]
    raise TokenizationError(
        f"{where}: the prompt has {len(clean)} tokens and its corrupted prompt {len(corrupted)}, but the activations "
        f"of one are put into the run of the other, position by position. From token {start} on they differ: "
        f"{pieces[0]} in the prompt, {pieces[1]} in the corrupted one. Put words there that are as many tokens."
    )


def _spans(row: PromptRow, cut: _Cut, tokenizer: PreTrainedTokenizerBase, where: str) -> dict[str, tuple[int, int]]:
    if not row.spans:
        return {}
    given: Any = None
    if tokenizer.is_fast:
        options: Any = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        given = tokenizer(cut.text, **options)["offset_mapping"]
    offsets = token_offsets(tokenizer, cut.text, cut.plain, given, where)
    found = {}
    for name, span in row.spans.items():
        start, stop = characters_of(span, name, cut.text, where)
        tokens = tokens_over(start, stop, offsets)
        if tokens is None:
            raise DataError(
                f"{where}: the span {name!r} is {brief(cut.text[start:stop])}, for which the tokenizer has no token. "
                "Choose a part of the prompt with letters."
            )
        found[name] = (tokens[0] + len(cut.before), tokens[1] + len(cut.before))
    return found
