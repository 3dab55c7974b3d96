"""Tokens of answers: the same for all rows, or of each row its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpretune.errors import ConfigurationError, DataError
from interpretune.models.answer_tokens import single_token_ids, warn_of_other_tokens
from interpretune.models.row_columns import ANSWER_TOKENS, ROW
from interpretune.session.labels import LABELS, check_labels_have_answers

if TYPE_CHECKING:
    from interpretune.session.module import ITModule


def answers_of_all_rows(module: ITModule) -> list[int] | None:
    """Token of each answer, where all rows have the same: as the configuration says, or as the rows do.

    None: the answers differ by row, have several tokens, or are not known.

    Raises:
        ConfigurationError: The answers are said twice, or are not one for each label.
        DataError: A label has no answer.
        TokenizationError: An answer of the configuration is not one token.
    """
    datamodule, answers = module.require_datamodule(), module.it_cfg.generative_step_cfg.answers
    splits = [item for item in datamodule.dataset.values() if ROW in getattr(item, "column_names", ())]
    if not answers:
        return _same_in_all(splits)
    if splits:
        raise ConfigurationError(
            f"GenerativeClassificationConfig.answers is {tuple(answers)}, and the rows of the data module have answers "
            "of their own. Leave one of the two out: answers, or ITDataModuleConfig.rows."
        )
    num_labels = datamodule.itdm_cfg.num_labels
    if num_labels is not None and len(answers) != num_labels:
        raise ConfigurationError(
            f"GenerativeClassificationConfig.answers has {len(answers)} words, {tuple(answers)}, and "
            f"ITDataModuleConfig.num_labels is {num_labels}. Name one answer for each label, in the labels' order."
        )
    check_labels_have_answers(datamodule.dataset, answers)
    ids = single_token_ids(datamodule.tokenizer, answers)
    if getattr(module, "_answer_token_ids", None) is None:  # a session says it once
        warn_of_other_tokens(datamodule.tokenizer, answers, ids, datamodule.dataset)
    return ids


def answer_words(module: ITModule) -> tuple[str, ...]:
    """The answers in words, where all rows have the same; else none."""
    words = tuple(module.it_cfg.generative_step_cfg.answers)
    if words or module._same_answers is None or module.datamodule is None:
        return words
    splits = [item for item in module.datamodule.dataset.values() if ROW in getattr(item, "column_names", ())]
    return tuple(json.loads(splits[0][0][ROW])["answers"]) if splits else ()


def _same_in_all(splits: list[Any]) -> list[int] | None:
    found = {tuple(map(tuple, answers)) for split in splits for answers in split[ANSWER_TOKENS]}
    if len(found) != 1 or any(len(answer) > 1 for answer in next(iter(found))):
        return None
    return [answer[0] for answer in next(iter(found))] or None


def own_answers(batch: Mapping[str, Any]) -> Tensor | None:
    """Token of each answer of each row of a batch, ``[batch, k]``, -1 beyond the last; None: they have none.

    Raises:
        DataError: An answer has several tokens, or a row has no answers.
    """
    answers: Tensor | None = batch.get(ANSWER_TOKENS)
    if answers is None:
        return None
    longer = (answers[..., 1:] >= 0).any(-1).any(-1).nonzero().flatten().tolist()
    if longer:
        raise DataError(
            f"Row {longer[0]} of the batch has an answer of several tokens, and steps and the modes of analyses look "
            "at the token after the prompt alone. Ask with a question, which reads whole answers: "
            "it.effects(session.module.backend, ...), or an analysis with units in a configuration file."
        )
    if lacking := (answers[..., 0] < 0).all(-1).nonzero().flatten().tolist():
        raise DataError(
            f"Row {lacking[0]} of the batch has no answers, and steps and the modes of analyses count them. Give it "
            "some, or ask kl or loss with a question: it.effects(session.module.backend, ...), or an analysis with "
            "units in a configuration file."
        )
    return answers[..., 0]


def take_labels(module: ITModule, batch: MutableMapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Take the labels out of a batch: tokens of the correct answers, ``[batch]``, and labels, ``[batch]``.

    Raises:
        DataError: A label has no answer, or an answer has several tokens.
    """
    labels, answers = batch.pop(LABELS), module.differing_answers(batch)
    return module.labels_to_ids(labels) if answers is None else module.labels_to_ids(labels, answers)


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
